"""Small tables that tasks write beside the store, a file per block; receipts carry their checksums too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expertmine.errors import UserError
from expertmine.run.open_run import OpenRun
from expertmine.run.paths import ASSESSMENT, NULL, SELECTION, receipts_folder, table_key, tables_folder
from expertmine.specs.settings import Pooling
from expertmine.storage.files import sha256_file
from expertmine.storage.tables import read_table, write_table

_KINDS = {
    NULL: {"concept": pa.int64(), "max_ap": pa.float64()},
    SELECTION: {"units": [pa.int64()]},
    ASSESSMENT: {
        "concept": pa.int64(),
        "place": pa.int64(),
        "unit": pa.int64(),
        "resampled_ap": [pa.float32()],
        "held_out_low": pa.float64(),
        "held_out_high": pa.float64(),
    },
}
"""Columns of each kind of table, and their types; a type in brackets is a list of any fixed length."""


def write_null(
    run: OpenRun, pooling: Pooling, block: int, shuffled: NDArray[np.int64], max_ap: NDArray[np.float64]
) -> dict[str, str]:
    """Write the best average precision of a block in each shuffle of labels.

    Args:
        shuffled: (shuffles,) the concept whose labels were shuffled.
        max_ap: (shuffles,)

    Returns:
        The table's checksum by its key, for the receipt; empty if there are no shuffles.

    Raises:
        UserError: the disk is full or refuses.
    """
    return _write(run, NULL, pooling, block, {"concept": shuffled, "max_ap": max_ap}) if len(shuffled) else {}


def read_null(run: OpenRun, pooling: Pooling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whose labels were shuffled, and the best average precision of all units in each shuffle; both (shuffles,).

    Raises:
        UserError: a table is missing or torn.
    """
    if not run.plan.scoring.permutations:
        return np.empty(0, np.int64), np.empty(0)
    table = _read(run, NULL, pooling, 0)
    shuffled, highest = table["concept"].to_numpy(), table["max_ap"].to_numpy()
    for block in range(1, run.plan.layout.blocks):
        highest = np.maximum(highest, _read(run, NULL, pooling, block)["max_ap"].to_numpy())
    return shuffled, highest


def write_selection(run: OpenRun, pooling: Pooling, units: NDArray[np.int64]) -> None:
    """Write which units of each concept are assessed, (concepts, assessed), the best first.

    Raises:
        UserError: the disk is full or refuses.
    """
    _write(run, SELECTION, pooling, 0, {"units": pa.FixedSizeListArray.from_arrays(units.ravel(), units.shape[1])})


def read_selection(run: OpenRun, pooling: Pooling) -> NDArray[np.int64]:
    """(concepts, assessed) the units that are assessed, best first.

    Raises:
        UserError: the table is missing or torn.
    """
    column = _read(run, SELECTION, pooling, 0)["units"].combine_chunks()
    found: NDArray[np.int64] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return found


def has_selection(run: OpenRun, pooling: Pooling) -> bool:
    """Whether the units that are assessed have been written."""
    try:
        read_selection(run, pooling)
    except UserError:
        return False
    return True


def write_assessment(
    run: OpenRun,
    pooling: Pooling,
    block: int,
    at: tuple[NDArray[np.int64], NDArray[np.int64]],
    units: NDArray[np.int64],
    resampled: NDArray[np.float32],
    interval: NDArray[np.float64],
) -> dict[str, str]:
    """Write the assessment of a block's units.

    Args:
        at: the concept, and the rank among its selected units from 0, both (assessed in this block,).
        units: (assessed in this block,)
        resampled: (assessed in this block, resamples) average precision on mined sentences drawn again.
        interval: (assessed in this block, 2) of average precision on held-out sentences, NaN without any.

    Returns:
        The table's checksum by its key, for the receipt.

    Raises:
        UserError: the disk is full or refuses.
    """
    columns = {
        "concept": at[0],
        "place": at[1],
        "unit": units,
        "resampled_ap": pa.FixedSizeListArray.from_arrays(resampled.ravel(), resampled.shape[1]),
        "held_out_low": interval[:, 0],
        "held_out_high": interval[:, 1],
    }
    return _write(run, ASSESSMENT, pooling, block, columns)


def read_assessments(run: OpenRun, pooling: Pooling) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the assessments of all blocks.

    Returns:
        (concepts, assessed, resamples) and (concepts, assessed, 2), see `write_assessment`.

    Raises:
        UserError: a table is missing, torn, or of other units.
    """
    selected = read_selection(run, pooling)
    shape = selected.shape
    resampled = np.full((*shape, run.plan.scoring.resamples), np.nan, np.float32)
    interval = np.empty((*shape, 2))
    for block in range(run.plan.layout.blocks):
        table = _read(run, ASSESSMENT, pooling, block)
        at = table["concept"].to_numpy(), table["place"].to_numpy()
        inside = all(((ids >= 0) & (ids < count)).all() for ids, count in zip(at, shape, strict=True))
        flat = table["resampled_ap"].combine_chunks().flatten().to_numpy()
        if not inside or len(flat) != table.num_rows * run.plan.scoring.resamples:
            break  # leaves a gap, which is refused below
        if (selected[at] != table["unit"].to_numpy()).any():
            break
        resampled[at] = flat.reshape(-1, run.plan.scoring.resamples)
        interval[at] = np.stack([table["held_out_low"].to_numpy(), table["held_out_high"].to_numpy()], axis=1)
    if np.isnan(resampled).any():
        assessed, chosen = (tables_folder(run.path, kind) for kind in (ASSESSMENT, SELECTION))
        raise UserError(
            f"{assessed} does not match the units selected in {chosen}; "
            f"remove {receipts_folder(run.path, 'assess')} and run `expertmine score {run}`"
        )
    return resampled, interval


def tables_are_sound(run: OpenRun, checksums: Mapping[str, str]) -> bool:
    """Whether the tables that a receipt names still have the bytes that were written."""
    try:
        return all(sha256_file(run.path / key) == checksum for key, checksum in checksums.items() if is_table(key))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{run}: cannot be read ({error})") from error


def is_table(key: str) -> bool:
    """Whether a key of a receipt names a table, and not an object of the store."""
    return key.split("/")[0] in (NULL, ASSESSMENT)


def _write(run: OpenRun, kind: str, pooling: Pooling, block: int, columns: Mapping[str, object]) -> dict[str, str]:
    key = table_key(kind, pooling, block)
    return {key: write_table(run.path / key, pa.table(columns))}


def _read(run: OpenRun, kind: str, pooling: Pooling, block: int) -> pa.Table:
    path = run.path / table_key(kind, pooling, block)
    try:
        table = read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `expertmine verify {run}` says which receipts to remove") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({error}); `expertmine verify {run}` says which receipts to remove"
        ) from error
    found = {name: _kind_of(table[name].type) for name in table.column_names}
    if found != _KINDS[kind] or any(column.null_count for column in table.columns):
        raise UserError(f"{path} is no table of this kind; `expertmine verify {run}` says which receipts to remove")
    return table


def _kind_of(column: pa.DataType) -> pa.DataType | list[pa.DataType]:
    return [column.value_type] if pa.types.is_fixed_size_list(column) else column
