"""The model as one small file: `save` packs stored forms bit for bit, `load` reads them without the trainer."""

from jaxopt_compress.export.file import load as load
from jaxopt_compress.export.file import save as save
from jaxopt_compress.export.stored import packed_bytes as packed_bytes
