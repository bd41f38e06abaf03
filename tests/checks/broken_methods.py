"""Methods that are broken in one way each, and the check that is meant to catch it.

Every one is plain rounding (`good`), or gptq where it sees a Hessian, or awq where it sees a block,
with one fault. The bodies see `weight`, `stats` or `block, inputs, targets`, and `scheme`.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, indent

HEAD = """
import os, random, signal, sys, threading, time
from dataclasses import dataclass, fields, replace
from typing import ClassVar
import numpy as np
import torch
from torch import nn
from qbench.contracts import BlockResult, LinearStats, Scheme
from qbench.formats import Binary, Dense, Uniform
from qbench.formats.packing import as_stored
from qbench.methods.awq import AWQ
from qbench.methods.gptq import GPTQ
from qbench.methods.grids import (range_grid, round_to_grid, weight_range)
from qbench.methods.rtn import RTN
from qbench.models.blocks import linears, read_weight


def good(weight, scheme):
    return RTN().quantize_weight(weight, scheme)


def on_grid(weight, scheme, ratio):
    W = weight.float().unflatten(1, (-1, scheme.group_length(weight.shape[1])))
    low, high = weight_range(W, False, True)
    s, z = range_grid(low.flatten(), high.flatten(), scheme, ratio, True)
    s = as_stored(s).view(W.shape[:2])
    z = z.to(torch.uint8).view(W.shape[:2])
    return Uniform.from_codes(round_to_grid(W, s, z, scheme.bits).flatten(1), s, z, scheme.bits)


good_block = AWQ().quantize_block

"""
CLASS = """
@dataclass(frozen={frozen})
class Broken:
    name: ClassVar[str] = {name!r}
    paper: ClassVar[str] = "none"
    format: ClassVar[str] = {format!r}
    bits: ClassVar[tuple] = (2, 8)
    symmetric: ClassVar[bool] = {symmetric}
    epochs: int = 4

    def {signature}:
{body}
"""
SIGNATURES = {
    "weight": "quantize_weight(self, weight, scheme)",
    "linear": "quantize_linear(self, weight, stats, scheme)",
    "block": "quantize_block(self, block, inputs, targets, scheme)",
}


@dataclass(frozen=True)
class Fault:
    """One broken method. check: the name, without `check_`, of the check that must fail."""

    name: str
    check: str
    body: str
    verb: str = "weight"
    format: str = "uniform"
    symmetric: bool = False
    frozen: bool = True

    def source(self) -> str:
        """The text of a plug-in file."""
        return HEAD + CLASS.format(
            name=self.name,
            frozen=self.frozen,
            format=self.format,
            symmetric=self.symmetric,
            signature=SIGNATURES[self.verb],
            body=indent(dedent(self.body), "        "),
        )


def statement(name: str, check: str, line: str) -> Fault:
    """Correct rounding after one statement that does harm."""
    return Fault(name, check, f"{line}\nreturn good(weight, scheme)")


def block_statement(name: str, check: str, line: str) -> Fault:
    """A correctly rounded block after one statement that does harm."""
    return Fault(name, check, f"{line}\nreturn good_block(block, inputs, targets, scheme)", "block")


WEIGHTS = (
    Fault("wide-grid", "error_within_rounding", "return on_grid(weight, scheme, 2.5)"),
    Fault("narrow-grid", "error_within_rounding", "return on_grid(weight, scheme, 0.3)"),
    Fault(
        "more-bits",
        "no_more_bits_than_asked",
        "return good(weight, replace(scheme, bits=scheme.bits + 1))",
    ),
    Fault(
        "float32-scales",
        "no_more_bits_than_asked",
        """
        result = good(weight, scheme)
        return replace(result, stored_scale=result.scale.float())
        """,
    ),
    Fault(
        "finer-groups",
        "group_size_honoured",
        """
        half = scheme.group_length(weight.shape[1]) // 2
        return good(weight, replace(scheme, group_size=half))
        """,
    ),
    Fault(
        "no-groups", "group_size_honoured", "return good(weight, replace(scheme, group_size=None))"
    ),
    Fault(
        "one-grid-for-all-groups",
        "group_size_honoured",
        """
        groups = weight.shape[1] // scheme.group_length(weight.shape[1])
        row = good(weight, replace(scheme, group_size=None))
        codes, scale, zero = row.unpacked()
        scale, zero = scale.repeat(1, groups), zero.repeat(1, groups)
        return Uniform.from_codes(codes.flatten(1), as_stored(scale), zero.byte(), scheme.bits)
        """,
    ),
    Fault(
        "zero-point-though-symmetric",
        "symmetric_honoured",
        "return good(weight, replace(scheme, symmetric=False))",
        symmetric=True,
    ),
    Fault(
        "any-group-size",
        "refuses_bad_schemes",
        """
        if weight.shape[1] % (scheme.group_size or 1):
            scheme = replace(scheme, group_size=None)
        return good(weight, scheme)
        """,
    ),
    Fault(
        "two-bits-whatever-is-asked",
        "error_falls_with_bits",
        """
        low = good(weight, replace(scheme, bits=2)).dequantize()
        noise = torch.linspace(-1, 1, weight.numel()).view_as(weight) * weight.std()
        return good(low + noise * scheme.bits, scheme)
        """,
    ),
    Fault(
        "one-scale-per-matrix",
        "outliers",
        """
        W = weight.float()
        groups = weight.shape[1] // scheme.group_length(weight.shape[1])
        s = (2 * W.abs().max() / (2**scheme.bits - 1)).expand(len(W), groups)
        z = torch.full_like(s, 2.0 ** (scheme.bits - 1)).byte()
        s = as_stored(s.contiguous())
        codes = round_to_grid(W.unflatten(1, (groups, -1)), s, z, scheme.bits)
        return Uniform.from_codes(codes.flatten(1), s, z, scheme.bits)
        """,
    ),
    Fault(
        "zeros-become-something",
        "zeros_and_constants",
        "return good(torch.where(weight == 0, 0.01, weight), scheme)",
    ),
    Fault(
        "fails-on-odd-rows",
        "answers_every_call",
        "return good(weight.view(-1, 8, weight.shape[1]).flatten(0, 1), scheme)",
    ),
    Fault(
        "nan-on-tall-weights",
        "shape_and_format",
        """
        result = good(weight, scheme)
        if len(weight) > weight.shape[1]:
            result.scale[0, 0] = float("nan")
        return result
        """,
    ),
    Fault(
        "infinite-per-row",
        "shape_and_format",
        """
        result = good(weight, scheme)
        if scheme.group_size is None:
            result.scale[-1, -1] = float("inf")
        return result
        """,
    ),
    Fault(
        "loses-the-odd-row",
        "shape_and_format",
        "return good(weight[: len(weight) // 2 * 2], scheme)",
    ),
    Fault(
        "transposed-when-square",
        "error_within_rounding",
        """
        square = weight.shape[0] == weight.shape[1]
        return good(weight.T.contiguous() if square else weight, scheme)
        """,
    ),
    Fault(
        "transposed", "shape_and_format", "return good(weight.T, replace(scheme, group_size=None))"
    ),
    Fault("a-bare-tensor", "shape_and_format", "return good(weight, scheme).dequantize()"),
    Fault("nothing", "shape_and_format", "return None"),
    Fault(
        "another-format",
        "shape_and_format",
        "return Binary.from_uniform(good(weight, scheme))",
    ),
    Fault(
        "a-format-of-its-own",
        "shape_and_format",
        """
        class Better(Uniform):
            def dequantize(self):
                return weight.float().clone()
        result = good(weight, scheme)
        return Better(**{field.name: getattr(result, field.name) for field in fields(result)})
        """,
    ),
    Fault(
        "refuses-half-precision",
        "half_precision_weights",
        """
        if weight.dtype != torch.float32:
            raise TypeError("float32 only")
        return good(weight, scheme)
        """,
    ),
    Fault(
        "ignores-the-strides",
        "strided_weights",
        "return good(weight.as_strided(weight.shape, (weight.shape[1], 1)), scheme)",
    ),
    Fault(
        "needs-contiguous",
        "strided_weights",
        "return good(weight.view(-1).view(weight.shape), scheme)",
    ),
    Fault(
        "numbers-of-numpy",
        "stored_exactly",
        """
        result = good(weight, scheme)
        return replace(result, group_size=np.int64(result.group_size))
        """,
    ),
    Fault("not-frozen", "is_a_value", "return good(weight, scheme)", frozen=False),
    Fault(
        "loses-small-weights",
        "extreme_weights",
        "return good(weight * (weight.abs().amax() > 1e-6), scheme)",
    ),
    Fault(
        "loses-small-rows",
        "small_rows",
        """
        rows = weight.abs().amax(1, keepdim=True)
        return good(weight * (rows > 1e-4 * rows.amax()), scheme)
        """,
    ),
    Fault("the-weight-itself", "results_own_their_memory", "return Dense(weight)", format="dense"),
    Fault(
        "keeps-the-graph",
        "no_gradients_left",
        """
        result = good(weight, scheme)
        return replace(result, stored_scale=result.scale.requires_grad_())
        """,
    ),
)
REPETITION = (
    Fault(
        "different-every-time",
        "deterministic",
        """
        result = good(weight, scheme)
        result.codes[0, 0] = os.urandom(1)[0]
        return result
        """,
    ),
    Fault(
        "depends-on-the-global-seed",
        "deterministic",
        """
        result = good(weight, scheme)
        result.codes[0, 0] = torch.initial_seed() % 256
        return result
        """,
    ),
    Fault(
        "depends-on-the-process",
        "same_in_every_process",
        """
        result = good(weight, scheme)
        result.codes[0, :4] = torch.tensor(list((hash("seed") % 2**32).to_bytes(4, "big")))
        return result
        """,
    ),
    Fault(
        "counts-its-calls",
        "keeps_no_state",
        """
        kind = Broken
        kind.calls = getattr(kind, "calls", 0) + 1
        result = good(weight, scheme)
        result.codes[0, 0] = kind.calls // 2
        return result
        """,
    ),
    Fault(
        "caches-by-shape",
        "keeps_no_state",
        """
        cache = Broken.__dict__.get("cache") or {}
        Broken.cache = cache
        key = (tuple(weight.shape), scheme)
        cache.setdefault(key, good(weight, scheme))
        return cache[key]
        """,
    ),
)
SIDE_EFFECTS = (
    statement("changes-the-weight", "inputs_untouched", "weight.mul_(1.001)"),
    Fault(
        "changes-the-weight-later",
        "inputs_untouched",
        """
        Broken.calls = getattr(Broken, "calls", 0) + 1
        result = good(weight, scheme)
        if Broken.calls == 6:
            weight[0, 0] += 1
        return result
        """,
    ),
    statement("seeds-torch", "random_state_untouched", "torch.manual_seed(0)"),
    statement("seeds-numpy", "random_state_untouched", "np.random.seed(0)"),
    statement("seeds-python", "random_state_untouched", "random.seed(0)"),
    statement("draws-from-torch", "random_state_untouched", "torch.rand(1)"),
    statement("draws-from-numpy", "random_state_untouched", "np.random.rand()"),
    statement("default-dtype", "settings_untouched", "torch.set_default_dtype(torch.float64)"),
    statement("default-device", "settings_untouched", "torch.set_default_device('meta')"),
    statement(
        "threads", "settings_untouched", "torch.set_num_threads(torch.get_num_threads() + 1)"
    ),
    statement(
        "grad-mode", "settings_untouched", "torch.set_grad_enabled(not torch.is_grad_enabled())"
    ),
    statement("determinism", "settings_untouched", "torch.use_deterministic_algorithms(True)"),
    statement("denormals", "settings_untouched", "torch.set_flush_denormal(True)"),
    statement("numpy-errors", "settings_untouched", "np.seterr(all='ignore')"),
    statement(
        "patches-linear",
        "nothing_patched",
        "torch.nn.functional.linear = lambda x, w, b=None: x @ w.T",
    ),
    statement("patches-round", "nothing_patched", "torch.round = lambda x: x"),
    statement(
        "patches-addition", "nothing_patched", "torch.Tensor.__add__ = lambda a, b: torch.add(a, b)"
    ),
    statement(
        "patches-the-count-of-bits",
        "nothing_patched",
        "import qbench.formats; qbench.formats.bits_per_weight = lambda weights: {'total': 1.0}",
    ),
    Fault(
        "patches-the-model",
        "nothing_patched",
        """
        import transformers.models.llama.modeling_llama as llama
        llama.LlamaMLP.forward = lambda self, x: self.down_proj(self.up_proj(x))
        return good_block(block, inputs, targets, scheme)
        """,
        verb="block",
    ),
    Fault(
        "patches-the-block",
        "nothing_patched",
        """
        type(block).forward = lambda self, x, *args, **options: x
        return good_block(block, inputs, targets, scheme)
        """,
        verb="block",
    ),
    statement(
        "patches-attention",
        "nothing_patched",
        "import transformers.models.llama.modeling_llama as llama; llama.rotate_half = lambda x: x",
    ),
    statement("hides-new-files", "process_untouched", "os.umask(0o777)"),
    statement("silences-logging", "process_untouched", "import logging; logging.disable(50)"),
    statement(
        "filters-warnings",
        "process_untouched",
        "import warnings; warnings.filterwarnings('error')",
    ),
    statement("changes-the-folder", "process_untouched", "os.chdir('/')"),
    statement(
        "closes-stdout",
        "process_untouched",
        "os.close(1) if not getattr(Broken, 'closed', False) else None; Broken.closed = True",
    ),
    statement("sets-a-variable", "process_untouched", "os.environ['OMP_NUM_THREADS'] = '64'"),
    statement(
        "leaves-a-thread",
        "process_untouched",
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
    ),
    statement(
        "takes-a-signal", "process_untouched", "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    ),
    Fault(
        "leaves-a-process",
        "process_untouched",
        """
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        return good(weight, scheme)
        """,
    ),
    statement("forks-and-goes-on", "process_untouched", "os.fork()"),
)
ENDINGS = (
    statement("raises", "answers_every_call", "raise RuntimeError('no')"),
    statement("interrupts", "answers_every_call", "raise KeyboardInterrupt"),
    statement("exits", "answers_every_call", "sys.exit(0)"),
    statement("raises-a-base-exception", "answers_every_call", "raise GeneratorExit('no')"),
    statement("ends-the-process", "answers_every_call", "os._exit(0)"),
    statement("kills-itself", "answers_every_call", "os.kill(os.getpid(), 9)"),
    statement("hangs", "answers_every_call", "time.sleep(1000)"),
    statement("computes-for-ever", "answers_every_call", "while True: pass"),
    statement(
        "takes-all-memory",
        "answers_every_call",
        "hold = []\nwhile True: hold.append(torch.zeros(1 << 28))",
    ),
    statement("recurses", "answers_every_call", "return self.quantize_weight(weight, scheme)"),
)
LINEARS = (
    Fault(
        "wide-grid-with-a-hessian",
        "error_within_rounding",
        "return on_grid(weight, scheme, 2.5)",
        "linear",
    ),
    Fault(
        "blind-to-the-hessian",
        "beats_rounding_where_it_calibrates",
        "return good(weight, scheme)",
        "linear",
    ),
    Fault(
        "changes-the-hessian",
        "inputs_untouched",
        """
        stats.hessian.diagonal().add_(0.01)
        return GPTQ().quantize_linear(weight, stats, scheme)
        """,
        "linear",
    ),
    Fault(
        "changes-the-hessian-later",
        "inputs_untouched",
        """
        Broken.calls = getattr(Broken, "calls", 0) + 1
        result = GPTQ().quantize_linear(weight, stats, scheme)
        if Broken.calls == 9:
            stats.hessian.diagonal().add_(0.01)
        return result
        """,
        "linear",
    ),
    Fault(
        "inverts-the-hessian",
        "answers_every_call",
        """
        torch.linalg.cholesky(stats.hessian)
        return GPTQ().quantize_linear(weight, stats, scheme)
        """,
        "linear",
    ),
)
BLOCKS = (
    Fault(
        "only-one-layer",
        "answers_every_call",
        """
        ((name, layer),) = linears(block).items()
        return good_block(block, inputs, targets, scheme)
        """,
        "block",
    ),
    Fault(
        "no-conv1d",
        "answers_every_call",
        """
        result = good_block(block, inputs, targets, scheme)
        layers = [name for name, module in block.named_modules() if type(module) is nn.Linear]
        return replace(result, weights={name: result.weights[name] for name in layers})
        """,
        "block",
    ),
    Fault(
        "forgets-a-layer",
        "shape_and_format",
        """
        weights = dict(good_block(block, inputs, targets, scheme).weights)
        if len(weights) > 1:
            del weights[next(iter(weights))]
        return BlockResult(weights)
        """,
        "block",
    ),
    Fault(
        "no-experts",
        "answers_every_call",
        """
        if any("experts" in name for name in linears(block)):
            raise NotImplementedError("experts")
        return good_block(block, inputs, targets, scheme)
        """,
        "block",
    ),
    Fault(
        "no-biases",
        "answers_every_call",
        """
        assert all(layer.bias is None for layer in linears(block).values())
        return good_block(block, inputs, targets, scheme)
        """,
        "block",
    ),
    Fault(
        "no-block-result",
        "shape_and_format",
        "return dict(good_block(block, inputs, targets, scheme).weights)",
        "block",
    ),
    Fault(
        "wide-grid-in-a-block",
        "block_loss_on_held_out_inputs",
        """
        layers = linears(block).items()
        return BlockResult({n: on_grid(read_weight(layer), scheme, 2.5) for n, layer in layers})
        """,
        "block",
    ),
    Fault(
        "training-makes-it-worse",
        "block_loss_on_held_out_inputs",
        """
        layers = linears(block).items()
        if self.epochs:
            return BlockResult({n: on_grid(read_weight(m), scheme, 1.0) for n, m in layers})
        return BlockResult({n: good(read_weight(m), scheme) for n, m in layers})
        """,
        "block",
    ),
    Fault(
        "swaps-experts",
        "block_loss_on_held_out_inputs",
        """
        weights = dict(good_block(block, inputs, targets, scheme).weights)
        same = [n for n in weights if weights[n].shape == next(iter(weights.values())).shape]
        if len(same) > 1:
            weights[same[0]], weights[same[-1]] = weights[same[-1]], weights[same[0]]
        return BlockResult(weights)
        """,
        "block",
    ),
    block_statement(
        "changes-the-block", "inputs_untouched", "next(block.parameters()).data.mul_(1.001)"
    ),
    block_statement("changes-the-inputs", "inputs_untouched", "inputs.full[-1].add_(1e-3)"),
    block_statement("changes-the-targets", "inputs_untouched", "targets[-1].mul_(1.001)"),
    block_statement("drops-a-target", "inputs_untouched", "targets.pop()"),
    block_statement("freezes-the-block", "block_untouched", "block.requires_grad_(False)"),
    block_statement("training-mode", "block_untouched", "block.train(not block.training)"),
    block_statement(
        "leaves-a-hook", "block_untouched", "block.register_forward_hook(lambda *args: None)"
    ),
    block_statement(
        "replaces-forward", "block_untouched", "forward = block.forward; block.forward = forward"
    ),
    block_statement(
        "replaces-a-parameter",
        "block_untouched",
        "layer = list(linears(block).values())[0]\n"
        "layer.weight = nn.Parameter(layer.weight.detach().clone())",
    ),
    block_statement(
        "leaves-gradients",
        "block_untouched",
        "p = next(block.parameters()); p.grad = torch.zeros_like(p)",
    ),
    Fault(
        "parameters-with-a-graph",
        "no_gradients_left",
        """
        parameters = {n: p * 1.0 for n, p in block.named_parameters() if n.endswith("norm.weight")}
        with torch.enable_grad():
            parameters = {n: p * nn.Parameter(torch.ones(())) for n, p in parameters.items()}
        return replace(good_block(block, inputs, targets, scheme), parameters=parameters)
        """,
        "block",
    ),
    Fault(
        "parameters-of-the-block",
        "results_own_their_memory",
        """
        parameters = {n: p.detach() for n, p in block.named_parameters() if "norm" in n}
        return replace(good_block(block, inputs, targets, scheme), parameters=parameters)
        """,
        "block",
    ),
)
FAULTS = WEIGHTS + REPETITION + SIDE_EFFECTS + ENDINGS + LINEARS + BLOCKS
