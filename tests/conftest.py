"""Tiny models and a byte-level tokenizer, shared by all tests.

What takes seconds to import is imported where it is used: pytest-xdist reads this file in a process
that runs no test, before it starts those that do.
"""

from __future__ import annotations

import os
import signal
from multiprocessing import forkserver

import pytest

from command_line import run_command
from families import FAMILIES, family_model, randomized
from places import NO_REAL_DATA, REAL_DATA
from qbench import registry
from qbench.experiment.preloaded import CHECKS, MODULES
from qbench.tasks import code_text
from tiny_runs import empty_picture

os.environ.setdefault("TQDM_DISABLE", "1")
# Under `nohup`, or in the background of a shell, these are ignored, which processes inherit.
for _ending in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_ending) is signal.SIG_IGN:
        signal.signal(_ending, lambda *_: None)  # which they do not


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no processor waits for a late one at the end."""
    slow = {item.path for item in items if _takes_time(item)}
    items.sort(key=lambda item: item.path not in slow)


def _takes_time(item):
    return any(item.get_closest_marker(mark) for mark in ("slow", "long"))


@pytest.fixture(scope="session", autouse=True)
def one_server():
    """The server of processes has what any test asks of it, as it starts once in a session.

    Else the first test decides, and every cell after the checks of a method imports anew what it
    needs.
    """
    modules = [*MODULES, *CHECKS]
    preloading = forkserver.set_forkserver_preload
    preloading(modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver, "set_forkserver_preload", lambda asked: preloading(modules))
        yield


@pytest.fixture(autouse=True)
def no_plugins_left(monkeypatch):
    """What a test registers is forgotten with it."""
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte, and three special ones."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<bot>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny():
    """Makes random Llama models of two blocks; keywords change the config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(seed: int = 0, **changes) -> LlamaForCausalLM:
        shape = {
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        }
        shape |= {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
        }
        config = LlamaConfig(
            **(shape | changes), bos_token_id=256, eos_token_id=257, pad_token_id=258
        )
        return randomized(LlamaForCausalLM, config, seed)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny, tokenizer, tmp_path_factory):
    """A saved tiny model with its tokenizer, as a user's local folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny(hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_data():
    """The folder with the real data sets; skips where it is not there."""
    if not REAL_DATA.is_dir():
        pytest.skip(NO_REAL_DATA)
    return REAL_DATA


@pytest.fixture(scope="session")
def random_model():
    """`random_model(kind, config)`: a random model of any transformers class."""
    return randomized


def quick_or_slow(name):
    """The name of a family as a parameter: one with Linear and one with Conv1D are quick."""
    marks = () if name in ("llama", "gpt2-conv1d") else pytest.mark.slow
    return pytest.param(name, marks=marks, id=name)


@pytest.fixture(params=map(quick_or_slow, FAMILIES))
def family(request):
    """Makes random models of one family, the same every time; who asks for it runs for all."""
    return lambda: family_model(*FAMILIES[request.param])


@pytest.fixture
def without_pictures(monkeypatch):
    """Nothing is drawn, which takes longer than a tiny model does."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)


@pytest.fixture
def few_modules(monkeypatch):
    """Of the text of code its first modules: all of them take seconds where bytes are tokens."""
    code_text.code_sha256()  # of all
    few = code_text.code_texts()[:6]
    monkeypatch.setattr(code_text, "code_texts", lambda: few)


@pytest.fixture(scope="session")
def command():
    """`command(*arguments)`: the exit code, stdout and stderr of `qbench ARGUMENTS`."""
    return run_command


@pytest.fixture
def no_hub(monkeypatch):
    """The hub does not answer, and no model of it is in its cache."""

    def unanswered(url):
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unanswered)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *name, revision: None)
