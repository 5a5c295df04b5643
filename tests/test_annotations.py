"""Readers of published formats, the check that every record passes, and the post's sample."""

import copy
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from captioning.data import (
    Annotated,
    read_coco,
    read_coco_splits,
    read_flickr,
    read_karpathy,
    read_pairs,
    sample_captions,
)
from captioning.data.records import one_picture_per_id
from captioning.data.texts import read_text
from captioning.errors import InputError


def coco_content(images: int = 3, captions: int = 5) -> dict[str, Any]:
    return {
        "info": {}, "licenses": [], "categories": [],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 1, "height": 1, "license": 1} for i in range(images)],
        "annotations": [
            {"id": i * captions + k, "image_id": i, "caption": f"caption {k} of image {i}", "iscrowd": 0}
            for i in range(images) for k in range(captions)
        ],
    }  # fmt: skip


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


class TestCoco:
    def test_it_agrees_with_pycocotools(self, tmp_path: Path) -> None:
        file = write(tmp_path / "captions.json", coco_content())
        with redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {k: v for k, v in json.loads(file.read_text()).items() if k != "categories"}
            coco.createIndex()
        for record in read_coco(file, "images", "train"):
            known = coco.loadAnns(coco.getAnnIds(imgIds=[int(record.image_id)]))
            assert record.captions == tuple(k["caption"] for k in known)
            assert record.caption_ids == tuple(str(k["id"]) for k in known)
            assert record.path == Path("images") / coco.imgs[int(record.image_id)]["file_name"]

    def test_images_without_captions_are_kept_without(self, tmp_path: Path) -> None:
        content = coco_content()
        content["annotations"] = content["annotations"][:5]
        records = read_coco(write(tmp_path / "c.json", content), ".", "val")
        assert [len(record.captions) for record in records] == [5, 0, 0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[]", r"is not a COCO captions file .* needs a list 'images'"),
            ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1, "bbox": []}]}',
             r"annotations\[0\]: found no 'caption' .*captions_\*.json, not instances"),
            ('{"images": [], "annotations": []}', "has no pictures"),
            ("[" * 100_000, "nested too deeply"),
            ('{"images": [{"id": 1, "file_name": "a"}, {"id": -1' + "0" * 5000 + ', "file_name": "b"}], "annotations": []}',
             r"images\[1\]: found id = a number of 5,001 digits; .* needs id: a whole number"),
            ('{"images": [], "images": []}', "the key 'images' comes twice"),
        ],
    )  # fmt: skip
    def test_another_file_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_coco(write(tmp_path / "c.json", text), ".", "train")

    def test_a_number_that_nobody_asks_for_may_be_of_any_length(self, tmp_path: Path) -> None:
        text = json.dumps(coco_content()).replace('{"images"', '{"year": 1' + "0" * 5000 + ', "images"', 1)
        assert len(read_coco(write(tmp_path / "c.json", text), ".", "train")) == 3

    def test_a_missing_file_names_the_remedy_and_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no annotation file .*CAPTIONING_DATA"):
            read_coco("none.json", ".", "train")
        with pytest.raises(InputError, match="can't be read as an annotation file"):
            read_coco(tmp_path, ".", "train")

    def test_ids_written_as_text_find_their_images(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = coco_content(images=4)
        for caption in content["annotations"][::2]:
            caption["image_id"] = str(caption["image_id"])
        records = read_coco(write(tmp_path / "c.json", content), ".", "train")
        assert [len(record.captions) for record in records] == [5, 5, 5, 5]
        assert "10 image ids written as text, the others as numbers: 0, 1, 2, …" in caplog.text

    def test_what_is_listed_twice_is_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = coco_content()
        content["images"].append({**content["images"][0], "id": "0"})
        content["annotations"].append({**content["annotations"][0]})
        records = read_coco(write(tmp_path / "c.json", content), ".", "train")
        assert [len(record.captions) for record in records] == [6, 5, 5]
        assert "1 images listed twice: 0" in caplog.text
        assert "1 captions with the id of another: 0" in caplog.text

    def test_empty_captions_are_left_out_and_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = coco_content()
        for position, empty in ((1, ""), (3, None), (7, " \n")):
            content["annotations"][position]["caption"] = empty
        records = read_coco(write(tmp_path / "c.json", content), ".", "train")
        assert [record.caption_ids for record in records][:2] == [("0", "2", "4"), ("5", "6", "8", "9")]
        assert "3 empty captions left out: annotations[1], annotations[3], annotations[7]" in caplog.text


class TestOnePicturePerId:
    def test_two_files_that_number_alike_are_refused(self, tmp_path: Path) -> None:
        files = {split: f"{split}.json" for split in ("train", "val")}
        for file in files.values():
            write(tmp_path / file, coco_content())
        with pytest.raises(
            InputError, match=r"the id 0 means two pictures, .*train2017/0+.jpg and .*val2017/0+.jpg"
        ):
            read_coco_splits(tmp_path, files, {"train": "train2017", "val": "val2017"})
        # The same id is allowed for the same picture.
        assert len(read_coco_splits(tmp_path, files, {"train": "all", "val": "all"})) == 6
        with pytest.raises(InputError, match="no folder for the split 'val'"):
            read_coco_splits(tmp_path, files, {"train": "all"})

    def test_one_file_with_two_pictures_of_one_id_is_refused(self, tmp_path: Path) -> None:
        content = coco_content()
        content["images"][2]["id"] = "1"
        with pytest.raises(InputError, match="the id 1 means two pictures"):
            read_coco(write(tmp_path / "c.json", content), ".", "train")
        images = [TestKarpathy.image(filepath=folder, cocoid=5) for folder in ("train", "val")]
        with pytest.raises(InputError, match="the id 5 means two pictures, train/a.jpg and val/a.jpg"):
            read_karpathy(write(tmp_path / "k.json", {"images": images}), "")

    def test_a_picture_may_be_in_two_splits(self) -> None:
        records = [Annotated("1", Path("a"), split, ("x",)) for split in ("train", "val")]
        assert one_picture_per_id(records, "mine") == records
        with pytest.raises(InputError, match="mine: the id 1 means two pictures, a and b"):
            one_picture_per_id([*records, Annotated("1", Path("b"), "test", ())], "mine")


class TestKarpathy:
    @staticmethod
    def image(**changes: object) -> dict:
        return {
            "filepath": "val2014", "filename": "a.jpg", "cocoid": 7, "split": "restval", "sentids": [1],
            "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}], **changes,
        }  # fmt: skip

    def test_restval_joins_train(self, tmp_path: Path) -> None:
        images = [self.image(), self.image(split="test", cocoid=8, filename="b.jpg")]
        records = read_karpathy(write(tmp_path / "k.json", {"images": images}), "coco")
        assert records[0] == Annotated("7", Path("coco/val2014/a.jpg"), "train", ("A dog.",), ("1",))
        assert records[1].split == "test"

    def test_the_file_name_is_the_id_where_there_is_no_other(self, tmp_path: Path) -> None:
        image = {"filename": "a.jpg", "split": "val", "sentences": []}
        records = read_karpathy(write(tmp_path / "k.json", {"images": [image]}), "f")
        assert records == [Annotated("a.jpg", Path("f/a.jpg"), "val", ())]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sentences": None}, r"images\[1\]: found sentences = None; .* needs sentences: a list"),
            ({"sentences": ["A dog."]}, r"images\[1\].sentences\[0\]: found 'A dog.'; .* an object with raw"),
            ({"sentids": [1, 2]}, "found 2 sentids; .* as many as sentences, 1"),
            ({"sentids": [[]]}, r"sentences\[0\]: found sentid = \[\]"),
            ({"split": "holdout"}, "found split = 'holdout'; .* needs split: train, val"),
            ({"filename": ""}, "found filename = ''; .* the name of a file"),
        ],
    )
    def test_a_record_of_another_form_is_named(self, tmp_path: Path, changes: dict, message: str) -> None:
        images = [self.image(), self.image(**changes)]
        with pytest.raises(InputError, match=message):
            read_karpathy(write(tmp_path / "k.json", {"images": images}), "coco")

    def test_a_record_that_lacks_a_field_is_named(self, tmp_path: Path) -> None:
        broken = self.image()
        del broken["sentences"]
        with pytest.raises(InputError, match=r"images\[0\]: found no 'sentences' among \['filepath'"):
            read_karpathy(write(tmp_path / "k.json", {"images": [broken]}), "coco")
        with pytest.raises(InputError, match="not a Karpathy split file"):
            read_karpathy(write(tmp_path / "k.json", "{}"), "coco")


class TestFlickr:
    def write(self, tmp_path: Path, tokens: str, train: str = "a.jpg\n", val: str = "b.jpg\n") -> dict:
        for name, text in (("tokens", tokens), ("train", train), ("val", val)):
            write(tmp_path / name, text)
        splits = {"train": tmp_path / "train", "val": tmp_path / "val"}
        return {"tokens": tmp_path / "tokens", "images": "images", "splits": splits}

    def test_surplus_lines_are_left_out_with_a_message(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = "a.jpg#0\tA dog .\na.jpg#1\tDogs .\nb.jpg#0\tA cat .\nx.jpg.1#0\tNobody .\n"
        records = read_flickr(**self.write(tmp_path, tokens))
        assert [(r.image_id, r.split, r.captions) for r in records] == [
            ("a.jpg", "train", ("A dog .", "Dogs .")),
            ("b.jpg", "val", ("A cat .",)),
        ]
        assert "1 lines left out that name no picture: x.jpg.1" in caplog.text

    def test_lists_that_do_not_match_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="val lists no picture that .*tokens has a caption of"):
            read_flickr(**self.write(tmp_path, "a.jpg#0\tA dog .\n"))

    def test_an_optional_list_is_used_where_it_is_there(self, tmp_path: Path) -> None:
        given = self.write(tmp_path, "a.jpg#0\tA dog .\nb.jpg#0\tA cat .\nc.jpg#0\tA cow .\n")
        given["optional_splits"] = {"test": tmp_path / "test"}
        assert [r.split for r in read_flickr(**given)] == ["train", "val"]
        write(tmp_path / "test", "c.jpg\n")
        assert [(r.image_id, r.split) for r in read_flickr(**given)][2:] == [("c.jpg", "test")]

    def test_a_listed_image_without_captions_is_kept_without(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = "a.jpg#0\tA dog .\nb.jpg#0\tA cat .\n"
        records = read_flickr(**self.write(tmp_path, tokens, val="b.jpg\nc.jpg\n"))
        assert [r.captions for r in records] == [("A dog .",), ("A cat .",), ()]
        assert "val have no caption here: c.jpg" in caplog.text

    def test_a_line_of_another_form_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match="line 3: found 'a.jpg A dog .'; .* needs 'name.jpg#0<tab>sentence'"
        ):
            read_flickr(**self.write(tmp_path, "\na.jpg#0\tA dog .\na.jpg A dog .\n"))

    def test_what_is_empty_or_listed_twice_is_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = "a.jpg#0\tA dog .\na.jpg#1\t\nb.jpg#0\tA cat .\n"
        records = read_flickr(**self.write(tmp_path, tokens, train="a.jpg\na.jpg\n", val="a.jpg\nb.jpg\n"))
        assert [(r.image_id, r.split, r.captions) for r in records] == [
            ("a.jpg", "train", ("A dog .",)),
            ("a.jpg", "val", ("A dog .",)),
            ("b.jpg", "val", ("A cat .",)),
        ]
        assert "2 empty captions left out: line 2" in caplog.text
        assert "1 images listed twice in " in caplog.text


FORMATS: dict[str, tuple[Any, Callable[[Path], list[Annotated]]]] = {
    "coco": (coco_content(), lambda file: read_coco(file, "", "train")),
    "karpathy": (
        {"images": [{**TestKarpathy.image(), "cocoid": i, "sentids": [i], "filename": f"{i}.jpg"} for i in range(3)]},
        lambda file: read_karpathy(file, ""),
    ),
    "jsonl": (
        [{"image": f"{i}.jpg", "caption": [f"caption {i}"], "split": "train"} for i in range(3)],
        read_pairs,
    ),
}  # fmt: skip
# What a broken exporter writes; NaN is what pandas makes of an empty cell.
ODD = [None, True, 1.5, float("nan"), 10**400, "", " ", "a\0b", "a\ud800b", [], {}, [None], {"a": 1}]


def malformed(content: Any) -> Iterator[Any]:
    """Yield the content with one value at a time replaced by each odd one, or left out."""
    places: list[tuple[Any, ...]] = []

    def collect(node: Any, path: tuple[Any, ...]) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((*path, key))
            collect(node[key], (*path, key))

    collect(content, ())
    for *path, last in places:
        for odd in (*ODD, "left out"):
            changed = copy.deepcopy(content)
            parent = changed
            for key in path:
                parent = parent[key]
            if odd == "left out":
                del parent[last]
            else:
                parent[last] = odd
            yield changed


class TestEveryRecord:
    @pytest.mark.parametrize("form", FORMATS)
    def test_a_malformed_record_is_refused_or_loses_nothing_silently(
        self, form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content, read = FORMATS[form]
        captions = {"coco": 15}.get(form, 3)
        tried = refused = 0
        for changed in malformed(content):
            caplog.clear()
            lines = "\n".join(map(json.dumps, changed)) if form == "jsonl" else json.dumps(changed)
            file = write(tmp_path / f"m.{form}", lines)
            tried += 1
            try:
                records = read(file)
            except InputError as error:  # anything else fails the test
                refused += 1
                assert str(file) in str(error) and str(error).isprintable()
                continue
            assert all(text.isprintable() for r in records for text in (r.image_id, r.split, *r.captions))
            lost = captions - sum(len(record.captions) for record in records)
            # An entry that is gone from a list, or an empty list of captions, can't be told from a smaller file.
            is_smaller = any(not record.captions for record in records) or len(changed) < len(content) or any(
                len(changed[key]) < len(content[key]) for key in ("images", "annotations") if key in content
            )  # fmt: skip
            assert not lost or caplog.text or is_smaller, changed
        assert tried > 150 and refused > tried / 4

    def test_a_truncated_file_is_refused_at_any_length(self, tmp_path: Path) -> None:
        text = json.dumps(coco_content(images=2, captions=2))
        for length in range(len(text)):
            with pytest.raises(InputError, match="c.json"):
                read_coco(write(tmp_path / "c.json", text[:length]), "", "train")

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        generator = random.Random(0)
        content = bytearray(json.dumps(coco_content()).encode())
        for _ in range(100):
            damaged = bytearray(content)
            damaged[generator.randrange(len(content))] = generator.randrange(128, 256)
            (tmp_path / "c.json").write_bytes(damaged)
            with pytest.raises(InputError, match="not UTF-8"):
                read_coco(tmp_path / "c.json", "", "train")

    def test_a_byte_order_mark_is_no_part_of_the_text(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa dog")
        assert read_text(tmp_path / "t.txt") == "a dog"
        with pytest.raises(InputError, match="can't be read"):
            read_text("a\0b")

    def test_a_message_shows_no_control_characters(self, tmp_path: Path) -> None:
        content = coco_content()
        content["images"][1]["id"] = "\x1b[31mred"
        with pytest.raises(InputError, match=r"images\[1\]: found id = .*x1b\[31mred") as caught:
            read_coco(write(tmp_path / "c.json", content), "", "train")
        assert "\x1b" not in str(caught.value)

    def test_a_caption_has_no_control_characters(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = coco_content(images=1, captions=2)
        content["annotations"][0]["caption"] = "\x1b[31ma dog\x07\u202e runs"
        content["annotations"][1]["caption"] = "\x07"
        (record,) = read_coco(write(tmp_path / "c.json", content), "", "train")
        assert record.captions == (" [31ma dog   runs",)
        assert "2 captions with control characters, now spaces: annotations[0], annotations[1]" in caplog.text
        assert "1 empty captions left out: annotations[1]" in caplog.text


class TestSample:
    def records(self, count: int = 200) -> list[Annotated]:
        return [
            Annotated(str(i), Path(f"{i}.jpg"), "train", tuple(f"c{i} {k}" for k in range(5)), tuple(f"{i}-{k}" for k in range(5)))
            for i in range(count)
        ]  # fmt: skip

    def draw(self, **options: object) -> list[Annotated]:
        return sample_captions(
            self.records, **{"number": 300, "val_share": 0.2, "by": "image", "seed": 0, **options}
        )

    def test_no_photograph_is_on_both_sides(self) -> None:
        drawn = self.draw()
        sides = [{r.image_id for r in drawn if r.split == split} for split in ("train", "val")]
        assert not sides[0] & sides[1] and abs(len(sides[1]) / len(sides[0] | sides[1]) - 0.2) < 0.01
        assert sum(len(r.captions) for r in drawn) == 300

    def test_the_posts_caption_split_leaks_images(self) -> None:
        drawn = self.draw(by="caption")
        sides = [{r.image_id for r in drawn if r.split == split} for split in ("train", "val")]
        assert sides[0] & sides[1]
        assert sum(len(r.captions) for r in drawn if r.split == "val") == 60

    def test_the_seed_decides(self) -> None:
        assert self.draw() == self.draw() != self.draw(seed=1)

    def test_captions_keep_their_images(self) -> None:
        for record in self.draw():
            assert all(
                c == f"c{i.replace('-', ' ')}"
                for c, i in zip(record.captions, record.caption_ids, strict=True)
            )
            assert all(c.startswith(f"c{record.image_id} ") for c in record.captions)

    def test_wrong_options_are_refused(self) -> None:
        with pytest.raises(InputError, match="2000 captions wanted but the annotations have 1000"):
            self.draw(number=2000)
        with pytest.raises(InputError, match="it is image or caption"):
            self.draw(by="photo")
        with pytest.raises(InputError, match="val_share is 1"):
            self.draw(val_share=1)

    @pytest.mark.slow
    def test_a_file_of_train2014s_size_gives_the_posts_sample(self, tmp_path: Path) -> None:
        file = write(tmp_path / "captions_train2014.json", coco_content(images=82783))
        drawn = sample_captions(
            lambda: read_coco(file, ".", "train"), number=30000, val_share=0.2, by="image", seed=0
        )
        assert sum(len(r.captions) for r in drawn) == 30000
