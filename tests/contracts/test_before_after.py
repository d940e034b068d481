"""Before and After: the strip, the files under the slider, and batches that do not go together."""

from __future__ import annotations

import pytest
import torch

from conditional_balance.nodes.before_after import CBBeforeAfter


def test_strip_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, reference = torch.zeros(1, 16, 16, 3), torch.ones(2, 16, 16, 3), torch.zeros(1, 8, 8, 3)
    output = CBBeforeAfter.execute(before, after, reference)
    assert output.args[0].shape == (2, 16, 16 * 3 + 2 * 8, 3)
    (files,) = output.ui["cb_compared"]
    assert [len(files[side]) for side in ("before", "after")] == [1, 2]
    assert output.ui["cb_summary"][0].startswith("2 pictures, before and after")


def test_batches_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="'before' holds 2 pictures beside 3: give one for all, or one for each"):
        CBBeforeAfter.execute(torch.zeros(2, 8, 8, 3), torch.zeros(3, 8, 8, 3))
