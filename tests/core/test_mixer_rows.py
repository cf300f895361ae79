"""Rows of a batch do not meet, nor does a row meet what stands under its mask: not in one bit."""

from collections.abc import Iterator

import pytest
import torch
from memory_problems import assert_same_bits, assert_same_result
from small_mixers import (
    FEW,
    SETTINGS,
    Setting,
    held,
    inputs,
    middle,
    other_contents,
    packed,
    row_of,
)

every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@every_setting
def test_other_rows_change_no_bit_of_a_row(setting: Setting) -> None:
    mixer, x = setting.build(), inputs(3, 30)
    state = middle(mixer, [3, 9, 0])
    y, after = mixer(x, state)
    for row in range(3):
        others = inputs(3, 30, seed=1)
        others[row] = x[row]
        got_y, got = mixer(others, other_contents(state, row))
        assert torch.equal(got_y[row], y[row])
        assert_same_bits(row_of(got, row), row_of(after, row))
        assert not torch.equal(got_y[row - 1], y[row - 1])


@pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
def test_other_rows_of_documents_change_no_bit_of_a_row(setting: Setting) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    flags = {"mask": rows.mask, "reset": rows.reset}
    y, after = mixer(rows.x, **flags)
    for row in range(3):
        others = inputs(3, rows.x.shape[1], seed=1)
        others[row] = rows.x[row]
        got_y, got = mixer(others, **flags)
        assert torch.equal(got_y[row], y[row])
        assert_same_bits(row_of(got, row), row_of(after, row))


@pytest.mark.parametrize("setting", FEW.values(), ids=FEW)
def test_where_other_rows_end_or_begin_does_not_matter_to_a_row(setting: Setting) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    mask, reset = rows.mask.clone(), rows.reset.clone()
    mask[1:], reset[1:] = True, False
    mask[1, setting.grid :] = False
    state = middle(mixer, [4, 4, 4])
    y, after = mixer(rows.x, state, mask=rows.mask, reset=rows.reset)
    other_y, other = mixer(rows.x, state, mask=mask, reset=reset)
    live = rows.mask[0]
    assert_same_result(
        (y[0][live], held(row_of(after, 0))), (other_y[0][live], held(row_of(other, 0))), 1e-12
    )


@every_setting
def test_what_stands_under_the_mask_changes_no_bit(setting: Setting) -> None:
    mixer, rows = setting.build(), packed(setting.grid)
    flags = {"mask": rows.mask, "reset": rows.reset}
    state, x = middle(mixer, [4, 7, 0]), rows.x.clone()
    x[~rows.mask] = torch.nan
    (y, after), (got_y, got) = mixer(rows.x, state, **flags), mixer(x, state, **flags)
    assert torch.equal(got_y[rows.mask], y[rows.mask])
    assert_same_bits(got, after)
