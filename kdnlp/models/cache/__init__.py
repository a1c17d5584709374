"""A teacher's outputs, computed once: written to disk by row, and added to batches as they come.

`build` writes and opens a cache, by way of `plan` (what a row takes), `writing` (whole or not at
all) and `fingerprint` (what decides the numbers). `store` reads it, with `fields`, `rows` and
`numbers`.
"""

from kdnlp.models.cache.build import TEACHER_OUTPUTS, CachedCollator, cache_teacher
from kdnlp.models.cache.fingerprint import combine, fingerprint_model, fingerprint_rows
from kdnlp.models.cache.rows import ROW_COLUMN, with_row_numbers
from kdnlp.models.cache.store import TeacherCache

__all__ = [
    "ROW_COLUMN",
    "TEACHER_OUTPUTS",
    "CachedCollator",
    "TeacherCache",
    "cache_teacher",
    "combine",
    "fingerprint_model",
    "fingerprint_rows",
    "with_row_numbers",
]
