"""The README.md of a saved model: what it is, its bits by part, how to load it, and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

import qbench
from qbench.checkpoint.card_metadata import RESULTS, Benchmark, card_metadata, eval_results
from qbench.contracts import AS_IT_IS, WeightFormat
from qbench.exchange.foreign import stated_in_words
from qbench.files.atomic import write_text
from qbench.files.written_folder import CARD
from qbench.formats import Dense, bits_per_weight
from qbench.outside_text import markdown, printable
from qbench.records import Record

_TEMPLATE = """---
{{ metadata }}
---

# {{ title }}

Quantized by qbench {{ version }} (distribution `qbench-llm`) with `{{ method }}`, {{ scheme }}:
**{{ "%.3f"|format(bits.total) }} bits per weight**, counted from the file\
{{ ":" if bits|length > 1 }}
{%- for part, value in bits.items() if part != "total" %} {{ part }} {{ "%.3f"|format(value) }}\
{{ "" if loop.last else "," }}{% endfor %}.
{% if paper %}{{ paper }}.
{% endif -%}
{{ layers }} linear layers are quantized; embeddings, norms and \
{{ kept or "nothing else" }} are not.

```python
import qbench
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("this folder")  # `import qbench` must come first
```

`qbench inspect DIR` shows where the bits are, `qbench verify DIR` checks the files, \
`qbench eval DIR` scores them.

{% if scores %}
## Scores

| task | metric | filter | value | standard error | 95 % interval | items |
|---|---|---|---|---|---|---|
{% for score in scores -%}
| {{ score.task | plain }} | {{ score.metric | plain }} | {{ score.filter | plain }} | \
{{ "%.5g"|format(score.value) }} | \
{{ "" if score.stderr is none else "%.2g"|format(score.stderr) }} | \
{{ "" if score.low is none else "%.3g to %.3g"|format(score.low, score.high) }} | {{ score.n }} |
{% endfor %}
Record `{{ record.id }}`, reproduced by

```
{{ command }}
```

{% endif %}
## How it was made

```json
{{ facts }}
```
"""


def write_card(
    folder: Path,
    entry: Mapping[str, Any],
    weights: Mapping[str, WeightFormat],
    record: Record | None = None,
    benchmarks: Mapping[str, Benchmark] | None = None,
) -> None:
    """Write README.md, whole or not at all, and `.eval_results`; StoreError where the disk refuses.

    entry: the quantization_config. weights: of the quantized layers, from which the bits are
    counted. record: of the model's scores, if there are any. benchmarks: the published data sets of
    its tasks, by their names in it.
    """
    benchmarks = benchmarks or {}
    scheme = entry.get("scheme") or {}
    foreign = stated_in_words(entry["foreign"]) if "foreign" in entry else ""
    title = f"{entry.get('method')} {foreign or f'{_asked(scheme)} bits'}"
    if record is not None:
        title = record.cell.label
    stay = sorted(name for name, weight in weights.items() if weight.format == Dense.format)
    not_converted = [*entry.get("modules_to_not_convert", []), *stay]
    listed_elsewhere = ("groups", "modules_to_not_convert")
    facts = {key: value for key, value in entry.items() if key not in listed_elsewhere}
    environment = Environment(keep_trailing_newline=True)
    environment.filters["plain"] = markdown
    text = environment.from_string(_TEMPLATE).render(
        metadata=card_metadata(entry, title, record, benchmarks),
        title=markdown(title),
        version=qbench.__version__,
        method=markdown(str(entry.get("method"))),
        paper=markdown(str(entry.get("paper", ""))),
        scheme=foreign or _scheme_in_words(scheme),
        bits=bits_per_weight(weights.values()) or {"total": 0.0},
        layers=len(weights) - len(stay),
        kept=", ".join(markdown(str(name)) for name in not_converted[:3]),
        facts=json.dumps(facts, indent=2),
        scores=record.scores if record else (),
        record=record,
        command=printable(record.command) if record else "",
    )
    write_text(folder / CARD, text)
    _write_results(folder, eval_results(record, benchmarks) if record else {})


def _write_results(folder: Path, results: Mapping[str, str]) -> None:
    """The files of `.eval_results` by their names; others that are there are removed."""
    for stale in (folder / RESULTS).glob("*.yaml"):
        if stale.name not in results:
            stale.unlink()
    for name, result in results.items():
        write_text(folder / RESULTS / name, result)


def _asked(scheme: Mapping[str, Any]) -> Any:
    """Bits that were asked for: a fraction where they were divided between the layers."""
    return scheme.get("budget") or scheme.get("bits")


def _scheme_in_words(scheme: Mapping[str, Any]) -> str:
    """`3-bit codes, groups: 64, *.down_proj: 4 bits, head: 8 bits`."""
    words = [
        f"{_asked(scheme)}-bit codes",
        f"groups: {scheme.get('group_size') or 'one per channel'}",
    ]
    for rule in scheme.get("rules", []):
        words.append(f"{markdown(str(rule.get('layers')))}: {_rule_in_words(rule)}")
    if scheme.get("head_bits"):
        words.append(f"head: {scheme['head_bits']} bits")
    return ", ".join(words)


def _rule_in_words(rule: Mapping[str, Any]) -> str:
    """`4 bits`, `4 bits in groups of 32`, or that layers stay as they are."""
    if rule.get("bits") == AS_IT_IS:
        return "as they are"
    group = rule.get("group_size")
    if group is None:
        return f"{rule.get('bits')} bits"
    groups = "one group per channel" if group == "channel" else f"groups of {group}"
    return f"{rule.get('bits')} bits in {groups}"
