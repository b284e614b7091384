"""A live table's stream: whole batches or one sentence, and no bit of it may end the process."""

import pyarrow as pa
import pytest

from diagnostics.errors import DataError
from diagnostics.streams import Stream, read_stream

SCHEMA = pa.schema([("step", pa.int64()), ("pair_id", pa.string()), ("chosen_logps", pa.float64())])


def batch(step: int, rows: int = 3) -> pa.RecordBatch:
    ids = [f"pair{i}" for i in range(rows)]
    return pa.record_batch([[step] * rows, ids, [-1.5 * step] * rows], schema=SCHEMA)


@pytest.fixture
def stream(tmp_path):
    """A live part of five batches, not closed."""
    made = Stream(tmp_path / "part-00000-r0.arrow", SCHEMA)
    for step in range(5):
        made.append(batch(step))
    return made


@pytest.fixture
def part(stream):
    """Its file."""
    return stream.path


def test_any_arrow_reader_takes_it(part):
    with pa.memory_map(str(part)) as file:
        assert pa.ipc.open_stream(file).read_all().equals(read_stream(part)[0])


def test_it_is_what_arrow_itself_writes(tmp_path, part):
    stream = Stream(tmp_path / "closed.arrow", SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for step in range(5):
            writer.write_batch(batch(step))
            stream.append(batch(step))
    stream.close()
    assert stream.path.read_bytes() == sink.getvalue().to_pybytes()


@pytest.mark.parametrize("sums", [True, False], ids=["with sums", "without"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "live"])
def test_a_cut_end_loses_only_what_was_cut(stream, part, sums, closed):
    if closed:
        stream.close()
    if not sums:
        part.with_suffix(".sums").unlink()
    whole = part.read_bytes()
    rows, cut = read_stream(part)
    assert (rows.num_rows, cut) == (15, False)
    last = 8 if closed else 0  # what ends a stream holds no row
    for size in (0, 6, len(whole) // 2, len(whole) - last - 4) if not sums else range(0, len(whole) - last, 71):
        part.write_bytes(whole[:size])
        rows, cut = read_stream(part)
        assert rows.num_rows % 3 == 0
        assert rows.num_rows < 15
        if rows.num_rows:
            assert rows["step"].to_pylist() == [s for s in range(rows.num_rows // 3) for _ in range(3)]


def test_the_last_line_of_the_sums_is_cut_by_a_crash_before_its_batch(part):
    sums = part.with_suffix(".sums")
    sums.write_bytes(sums.read_bytes() + b"99999 3 0a")
    assert read_stream(part)[0].num_rows == 15
    sums.write_bytes(sums.read_bytes()[:-30])  # a line that the batch has lost: damage
    with pytest.raises(DataError, match=r"part-00000-r0\.sums: not readable as an Arrow stream"):
        read_stream(part)


def test_every_turned_bit_is_seen(part):
    """One bit of the stream or of its sums, whole batches following: a sentence that names the file."""
    for path in (part, part.with_suffix(".sums")):
        whole = path.read_bytes()
        for at in range(0, len(whole), 3 if path is part else 1):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            with pytest.raises(DataError, match=r"part-00000-r0\.(arrow|sums): not readable"):
                read_stream(part)
        path.write_bytes(whole)


def test_a_turned_bit_in_a_stream_of_an_earlier_version_loses_no_row(part):
    """Where there is no checksum: a sentence, or all rows. Bits of the lengths, the metadata and the offsets of ids."""
    part.with_suffix(".sums").unlink()
    whole = part.read_bytes()
    starts = [at for at in range(len(whole)) if whole.startswith(b"\xff\xff\xff\xff", at)][1:]
    assert len(starts) == 5
    said = 0
    for number, bit in enumerate(range(0, 8 * (starts[2] - starts[1]), 701)):
        at = starts[(1, 4)[number % 2]] + bit // 8  # in the second batch and in the last
        part.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit % 8)]) + whole[at + 1 :])
        try:
            rows, cut = read_stream(part)
        except DataError as error:
            said += "part-00000-r0.arrow" in str(error)
        else:
            assert rows.num_rows == 15
            assert not cut
    assert said
