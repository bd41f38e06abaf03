"""Whether a model can be calibrated by the walk.

The walk runs the blocks once, one after the other, each on the output of the one before. A model
that loops over its blocks, or mixes their outputs, would silently be calibrated on inputs that it
never sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qbench.calibration.streamed import streamed_logits
from qbench.calibration.walk import PROBED, device_of
from qbench.errors import ModelError, reason_of
from qbench.models.paging import is_paged

TOLERANCE = 1e-3  # of the logits' norm; those of a model that can be walked are the same to 1e-6
_MISFITS = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


@torch.no_grad()
def require_walkable(model: Any, tokens: Tensor) -> None:
    """ModelError where the walk gives other logits than the model, or where these are not finite.

    tokens: (samples, length) token ids, of which the first few are used. A paged model is not
    checked, since it would be read from its files twice.
    """
    if is_paged(model):
        return
    few = tokens[:1, :PROBED]
    expected = model(input_ids=few.to(device_of(model)), use_cache=False).logits.double()
    kind = type(model).__name__
    if expected.log_softmax(-1).isnan().any():  # -inf is a token that the model never says
        raise ModelError(
            f"the logits of the {kind} are not finite for the first tokens of the calibration; "
            "repair the checkpoint, or read it in a wider dtype"
        )
    try:
        walked = next(streamed_logits(model, few, 1)).double()
    except _MISFITS as error:  # its blocks are called, or answer, in another way
        raise ModelError(
            f"a {kind} cannot be run block by block ({reason_of(error)}); only methods that look "
            "at the weights alone can quantize it"
        ) from error
    said = expected.isfinite()
    if not (walked - expected)[said].norm() <= TOLERANCE * expected[said].norm():
        raise ModelError(
            f"a {kind} does not run its blocks one after the other, so that no layer's inputs are "
            "known; only methods that look at the weights alone can quantize it"
        )
