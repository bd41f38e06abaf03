"""The modules that take long to import: the server does so once, for the processes of all cells.

The classes of a model are imported when it is loaded, but for those of Llama, which bring with them
what all others need.
"""

from __future__ import annotations

MODULES = (
    "qbench.experiment.cell_process",
    "qbench.experiment.warm",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "transformers.models.auto.tokenization_auto",
    "datasets",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "lm_eval.tasks",
    "qbench.tasks.divergence",
    "qbench.tasks.judging",
    "qbench.tasks.mini_source",
    "qbench.tasks.perplexity",
    "qbench.tasks.window_pass",
)
CHECKS = (  # and what the contract checks of a method need, and the watch on one of others
    "qbench.checks.worker",
    "qbench.checks.watch",
)
