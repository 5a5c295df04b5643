"""Fills the feature cache from a network that processes every image, or from published files of features."""

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import InputError
from captioning.features.batches import (
    Extractor,
    FeatureBatch,
    RowFiles,
    batches_to_store,
    write_batch,
)
from captioning.features.cache import FeatureCache, check_provenance
from captioning.features.copying import copy_features
from captioning.features.images import read_image
from captioning.features.pictures import Pictures
from captioning.features.stores import UNRECORDED
from captioning.features.verification import verify
from captioning.features.writer import CacheWriter, remove_leftover
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

# Shows progress over batches with so many rows in all.
Progress = Callable[[Iterable[FeatureBatch], int], Iterable[FeatureBatch]]
_MAX_SHOWN = 20  # unreadable images that the log names
_RETURN_MEMORY_EVERY = 5.0  # seconds; it takes 0.03 to 0.1


class Report(NamedTuple):
    """The outcome of an extraction; `unreadable` pairs image ids with error messages."""

    total: int
    done_before: int
    done_now: int
    unreadable: list[tuple[str, str]]
    seconds: float

    def log(self, path: str | Path) -> None:
        """Log how many images the cache at `path` got, and warn about the unreadable ones."""
        rate = self.done_now / max(self.seconds, 1e-9)
        log.info(
            "%s: %d images, %d were there already, %d extracted in %.0f s (%.1f per second)",
            *(path, self.total, self.done_before, self.done_now, self.seconds, rate),
        )
        if self.unreadable:
            shown = self.unreadable[:_MAX_SHOWN]
            lines = [f"  {printable(image_id)}: {message}" for image_id, message in shown]
            if (more := len(self.unreadable) - len(shown)) > 0:
                lines.append(f"  and {more} more")
            log.warning(
                "%d images could not be read and are left out; they are tried again each time:\n%s",
                *(len(self.unreadable), "\n".join(lines)),
            )


def extract_missing(
    build_extractor: Callable[[], Extractor], images: Mapping[str, Path], path: str | Path, **options: Any
) -> Report | None:
    """Extract what the cache at `path` lacks; the extractor is built only where it lacks something.

    Args:
        build_extractor: called without arguments.
        images: path of each image by its id.
        path: the HDF5 file.
        **options: of `extract`.

    Returns:
        None where the cache has every image. Images that could not be read are tried again each time, and
        those that still cannot be are reported.

    Raises:
        InputError: see `extract`.
    """
    started = time.perf_counter()
    pictures = Pictures(images)
    unreadable = _only_unreadable(Path(path), pictures)
    if unreadable is None:
        return extract(build_extractor(), pictures, path, **options)
    if not unreadable:
        return None
    there, seconds = len(images) - len(unreadable), time.perf_counter() - started
    return Report(len(images), there, 0, unreadable, seconds)


def extract(
    extractor: Extractor,
    images: Mapping[str, Path] | Pictures,
    path: str | Path,
    *,
    batch_size: int,
    num_workers: int,
    autocast: bool = True,
    store: str = "float16",
    repair: bool = False,
    copy_from: str | Path | None = None,
    gpu: int = 0,
    progress: Progress = lambda batches, total: batches,
) -> Report:
    """Fill the cache at `path` with the features of all images.

    Args:
        extractor: on the CPU; it is moved to the GPU if there is one.
        images: path of each image by its id.
        path: the HDF5 file.
        batch_size: images per forward pass; a resumed run needs the same to give the same bits.
        num_workers: processes that decode images.
        autocast: compute in bfloat16, about twice as fast on a CPU that supports it.
        store: float16, or int8 for half of the bytes, see `stores`.
        repair: first reread an existing file and extract its corrupt rows again.
        copy_from: a float16 cache of the same features, whose rows are copied and not computed.
        gpu: which GPU, where there are several; counted round where there are fewer.
        progress: wraps the iterable of batches; also gets the number of images still to do.

    Raises:
        InputError: no images, a folder in place of the file, or see `CacheWriter`.
    """
    pictures = images if isinstance(images, Pictures) else Pictures(images)
    count, started = len(pictures.paths), time.perf_counter()
    if not count:
        raise InputError("there is no image to extract features of; check the data=... options")
    provenance = _provenance(extractor, autocast, store)
    if not repair and _is_complete(Path(path), pictures, provenance):
        return Report(count, count, 0, [], time.perf_counter() - started)
    with _open_writer(extractor, pictures, path, provenance) as writer:
        if repair:
            writer.forget([image_id for image_id, _ in verify(writer.target).corrupt])
        done_before = count - len(writer.to_do)
        if copy_from:
            copy_features(copy_from, writer, provenance, pictures)
        batches, total = batches_to_store(extractor, pictures, writer, batch_size, num_workers, autocast, gpu)
        unreadable = _write_all(writer, progress(batches, total))
        writer.finish()
    done_now = count - len(unreadable) - done_before
    return Report(count, done_before, done_now, unreadable, time.perf_counter() - started)


def _write_all(writer: CacheWriter, batches: Iterable[FeatureBatch]) -> list[tuple[str, str]]:
    """Write batches; return the images that could not be read, with the reasons."""
    unreadable: list[tuple[str, str]] = []
    returned = time.monotonic()
    for batch in batches:
        unreadable += write_batch(writer, batch)
        if time.monotonic() - returned >= _RETURN_MEMORY_EVERY:
            _return_free_memory()
            returned = time.monotonic()
    return unreadable


def _return_free_memory(load: Callable[[None], Any] = ctypes.CDLL) -> None:
    """Give free memory back to the system.

    The C library of Linux (glibc) keeps what lies between blocks in use. With loader processes that grew with
    the number of images, although no row is kept.
    """
    with suppress(OSError, AttributeError, TypeError):  # another system or C library
        load(None).malloc_trim(0)


def _provenance(extractor: Extractor, autocast: bool, store: str) -> dict[str, Any]:
    provenance = dict(extractor.provenance)
    if not isinstance(extractor, RowFiles):
        provenance["precision"] = "bfloat16" if autocast else "float32"
    if store != UNRECORDED["store"]:
        provenance["store"] = store
    return provenance


def _only_unreadable(path: Path, pictures: Pictures) -> list[tuple[str, str]] | None:
    """Return the images that the cache lacks, if none of them can be read; None if there is work to do."""
    remove_leftover(path)
    if not path.exists():
        return None
    cache = FeatureCache(path, check=False)
    missing = [image_id for image_id in pictures.paths if image_id not in cache]
    if cache.num_damaged or not {*missing} <= {*cache.unreadable} or not _is_current(cache, pictures):
        return None
    failures = []
    for image_id in missing:
        message = "none of the files has this image"
        if cache.made_of_pictures:
            try:
                read_image(pictures.paths[image_id])
                return None
            except InputError as error:
                message = str(error)
        failures.append((image_id, message))
    return failures


def _is_complete(path: Path, pictures: Pictures, provenance: Mapping[str, Any]) -> bool:
    """Whether there is nothing to write, so that the cache may be on a disk that can't be written."""
    remove_leftover(path)
    if not path.exists():
        return False
    cache = FeatureCache(path, check=False)
    if cache.num_damaged or not all(image_id in cache for image_id in pictures.paths):
        return False
    check_provenance(printable(path), cache.provenance, {**UNRECORDED, **provenance})
    return _is_current(cache, pictures)


def _is_current(cache: FeatureCache, pictures: Pictures) -> bool:
    """Whether no picture has changed; where they lie now is recorded, if the cache can be written."""
    recorded = cache.recorded(pictures.paths)
    found = pictures.compare(recorded)
    if pictures.refuse_others(cache.path, recorded, found):
        return False
    if found.same_content and cache.path.is_file() and os.access(cache.path, os.W_OK):
        present = [image_id for image_id in pictures.paths if image_id in cache]
        with (
            suppress(InputError),  # another process is writing
            CacheWriter(
                cache.path,
                present,
                cache.shape,
                cache.provenance,
                with_boxes=cache.has_boxes,
                pictures=pictures,
            ) as writer,
        ):
            writer.finish()
    return True


def _open_writer(
    extractor: Extractor, pictures: Pictures, path: str | Path, provenance: Mapping[str, Any]
) -> CacheWriter:
    if extractor.missing_weights:
        log.info("unused layers that the weights file lacks: %s", ", ".join(extractor.missing_weights))
    if Path(path).is_dir():
        raise InputError(
            f"{printable(path)} is a folder of shards that lacks some of the {len(pictures.paths)} images; "
            "give num_shards=<as many as it has>, which completes all, or features.path=<another>"
        )
    writer = CacheWriter(
        path,
        list(pictures.paths),
        (extractor.num_regions, extractor.feature_dim),
        provenance,
        with_boxes=extractor.has_boxes,
        pictures=None if isinstance(extractor, RowFiles) else pictures,
    )
    if changed := writer.changed:
        message = "%d images have changed since their extraction, first %s; they are extracted again"
        log.warning(message, len(changed), printable(changed[0]))
    if writer.num_damaged:
        message = (
            "%s: %d records were damaged; their images are extracted again, if they are of this data set"
        )
        log.warning(message, writer.target, writer.num_damaged)
    return writer
