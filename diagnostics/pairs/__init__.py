"""Preference pairs from files and hubs: one reader, recognising the usual shapes by their fields. No torch.

rows.py reads a file, a folder or a hub id as it stands. shapes.py says how a row is meant (answers.py: where its two
answers stand; context.py and messages.py: what may be a prompt). table.py reads all rows by the shape that most of them
have. write.py writes rows back in the source's own format.
"""

from diagnostics.pairs.messages import Message, SkipRow, Text
from diagnostics.pairs.pair import PairTable, PreferencePair, Reading, RowProblem
from diagnostics.pairs.rows import RawRows
from diagnostics.pairs.table import pairs_of, read_pairs
from diagnostics.pairs.write import write_rows

__all__ = ["Message", "PairTable", "PreferencePair", "RawRows", "Reading", "RowProblem", "SkipRow", "Text"]
__all__ += ["pairs_of", "read_pairs", "write_rows"]
