"""Readers of every format, the post's sample, and the toy scenes with their checker."""

import io
import json
import random
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from captioning.data.annotations import Annotated, read_coco, read_flickr, read_karpathy
from captioning.data.own import read_pairs
from captioning.data.sampling import sample_captions
from captioning.data.toy import (
    KINDS,
    Scene,
    Shape,
    describe,
    draw_scene,
    is_true,
    read_scenes,
    read_toy,
    render,
)
from captioning.errors import InputError


def coco_file(path: Path, images: int = 3, captions: int = 5) -> Path:
    content = {
        "info": {}, "licenses": [], "categories": [],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 1, "height": 1, "license": 1} for i in range(images)],
        "annotations": [
            {"id": i * captions + k, "image_id": i, "caption": f"caption {k} of image {i}", "iscrowd": 0}
            for i in range(images) for k in range(captions)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


class TestCoco:
    def test_it_agrees_with_pycocotools(self, tmp_path: Path) -> None:
        file = coco_file(tmp_path / "captions.json")
        with redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {k: v for k, v in json.loads(file.read_text()).items() if k != "categories"}
            coco.createIndex()
        for record in read_coco(file, "images", "train"):
            known = coco.loadAnns(coco.getAnnIds(imgIds=[int(record.image_id)]))
            assert record.captions == tuple(k["caption"] for k in known)
            assert record.caption_ids == tuple(str(k["id"]) for k in known)
            assert record.path == Path("images") / coco.imgs[int(record.image_id)]["file_name"]

    def test_images_without_captions_are_left_out(self, tmp_path: Path) -> None:
        content = json.loads(coco_file(tmp_path / "c.json").read_text())
        content["annotations"] = content["annotations"][:5]
        (tmp_path / "c.json").write_text(json.dumps(content))
        assert [record.image_id for record in read_coco(tmp_path / "c.json", ".", "val")] == ["0"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "no COCO captions file: it needs a list 'images'"),
            ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1, "image_id": 1, "bbox": []}]}', "'annotations'"),
        ],
    )  # fmt: skip
    def test_another_file_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_coco(tmp_path / "c.json", ".", "train")

    def test_a_missing_file_names_the_remedy(self) -> None:
        with pytest.raises(InputError, match="no annotation file .*CAPTIONING_DATA"):
            read_coco("none.json", ".", "train")


class TestKarpathy:
    def image(self, **changes: object) -> dict:
        return {
            "filepath": "val2014", "filename": "a.jpg", "cocoid": 7, "split": "restval", "sentids": [1],
            "sentences": [{"raw": "A dog.", "tokens": ["a", "dog"]}], **changes,
        }  # fmt: skip

    def test_restval_joins_train(self, tmp_path: Path) -> None:
        (tmp_path / "k.json").write_text(
            json.dumps({"images": [self.image(), self.image(split="test", cocoid=8)]})
        )
        records = read_karpathy(tmp_path / "k.json", "coco")
        assert records[0] == Annotated("7", Path("coco/val2014/a.jpg"), "train", ("A dog.",), ("1",))
        assert records[1].split == "test"

    def test_a_record_that_lacks_a_field_is_named(self, tmp_path: Path) -> None:
        broken = self.image()
        del broken["sentences"]
        (tmp_path / "k.json").write_text(json.dumps({"images": [broken]}))
        with pytest.raises(InputError, match="image 0 lacks 'sentences'"):
            read_karpathy(tmp_path / "k.json", "coco")
        (tmp_path / "k.json").write_text("{}")
        with pytest.raises(InputError, match="no Karpathy split file"):
            read_karpathy(tmp_path / "k.json", "coco")


class TestFlickr:
    def write(self, tmp_path: Path, tokens: str, train: str = "a.jpg\n", val: str = "b.jpg\n") -> dict:
        for name, text in (("tokens", tokens), ("train", train), ("val", val)):
            (tmp_path / name).write_text(text)
        splits = {"train": tmp_path / "train", "val": tmp_path / "val"}
        return {"tokens": tmp_path / "tokens", "images": "images", "splits": splits}

    def test_surplus_lines_are_dropped_with_a_message(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = "a.jpg#0\tA dog .\na.jpg#1\tDogs .\nb.jpg#0\tA cat .\nx.jpg.1#0\tNobody .\n"
        records = read_flickr(**self.write(tmp_path, tokens))
        assert [(r.image_id, r.split, r.captions) for r in records] == [
            ("a.jpg", "train", ("A dog .", "Dogs .")),
            ("b.jpg", "val", ("A cat .",)),
        ]
        assert "left out 1 lines that name no picture (x.jpg.1)" in caplog.text

    def test_lists_that_do_not_match_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="lists b.jpg but"):
            read_flickr(**self.write(tmp_path, "a.jpg#0\tA dog .\n"))

    def test_a_line_of_another_form_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="line 1: needed 'name.jpg#0<tab>sentence'"):
            read_flickr(**self.write(tmp_path, "a.jpg A dog .\n"))


class TestPairs:
    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
    def test_one_image_may_have_several_lines(self, tmp_path: Path, suffix: str) -> None:
        pairs = [("a.jpg", "One, two"), ("b.jpg", "Three"), ("a.jpg", "Four")]
        file = tmp_path / f"mine{suffix}"
        if suffix == ".jsonl":
            file.write_text("".join(json.dumps({"image": i, "caption": c}) + "\n" for i, c in pairs))
        else:
            tab = "\t" if suffix == ".tsv" else ","
            file.write_text(f"image{tab}caption\n" + "".join(f'{i}{tab}"{c}"\n' for i, c in pairs))
        records = read_pairs(file, val_share=0.5)
        assert {r.image_id: r.captions for r in records} == {
            "a.jpg": ("One, two", "Four"),
            "b.jpg": ("Three",),
        }
        assert sorted(r.split for r in records) == ["train", "val"]
        assert records[0].path == tmp_path / "a.jpg"

    def test_a_split_column_decides(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text("image,caption,split\na.jpg,x,val\nb.jpg,y,train\n")
        assert [r.split for r in read_pairs(tmp_path / "m.csv")] == ["val", "train"]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("m.csv", "picture,caption\na,b\n", "record 1: needs the fields 'image' and 'caption'"),
            ("m.jsonl", "{oops\n", "line 1 is not JSON"),
            ("m.jsonl", '["a.jpg", "x"]\n', "record 1: needs the fields .* found list"),
            ("m.jsonl", '{"image": "a.jpg", "caption": ["x", 3]}\n', "list of texts"),
            ("m.csv", "", "has no records"),
            ("m.txt", "a b", "needed a folder, .csv, .tsv or .jsonl"),
        ],
    )
    def test_another_form_is_refused(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            read_pairs(tmp_path / name)

    def test_captions_keep_their_words_whatever_separates_them(self, tmp_path: Path) -> None:
        (tmp_path / "m.CSV").write_text('Image, caption\na.jpg,"a dog\nruns"\nb.jpg, a\u2028cat \n')
        assert [r.captions for r in read_pairs(tmp_path / "m.CSV")] == [("a dog runs",), ("a cat",)]
        lines = [{"image": 7, "caption": ["a dog", "it\x85runs"]}, {"image": "b", "caption": "x"}]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
        assert [r.captions for r in read_pairs(tmp_path / "m.jsonl")] == [("a dog", "it runs"), ("x",)]

    def test_a_folder_has_captions_beside_its_pictures(self, tmp_path: Path) -> None:
        for name, text in (("a", "a dog\n\nit runs\n"), ("b", "a cat\n")):
            (tmp_path / f"{name}.jpg").write_bytes(b"")
            (tmp_path / f"{name}.txt").write_text(text)
        records = read_pairs(tmp_path, val_share=0.5)
        assert {r.path: r.captions for r in records} == {
            tmp_path / "a.jpg": ("a dog", "it runs"),
            tmp_path / "b.jpg": ("a cat",),
        }
        assert {r.split for r in records} == {"train", "val"}
        (tmp_path / "b.txt").unlink()
        with pytest.raises(InputError, match="1 pictures without one, first b.jpg"):
            read_pairs(tmp_path)
        with pytest.raises(InputError, match="val_share is 2"):
            read_pairs(tmp_path, val_share=2)

    def test_a_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="not UTF-8"):
            read_pairs(tmp_path / "m.csv")


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

    def test_the_seed_decides_and_the_drawn_ids_are_written(self, tmp_path: Path) -> None:
        drawn = self.draw(ids_file=tmp_path / "new" / "ids.json")
        assert drawn == self.draw() and drawn != self.draw(seed=1)
        ids = json.loads((tmp_path / "new" / "ids.json").read_text())
        assert {c for r in drawn if r.split == "val" for c in r.caption_ids} == set(ids["val"])
        assert len(ids["train"]) + len(ids["val"]) == 300

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

    def test_a_file_of_train2014s_size_gives_the_posts_sample(self, tmp_path: Path) -> None:
        file = coco_file(tmp_path / "captions_train2014.json", images=82783)
        drawn = sample_captions(
            lambda: read_coco(file, ".", "train"), number=30000, val_share=0.2, by="image", seed=0
        )
        assert sum(len(r.captions) for r in drawn) == 30000


class TestToy:
    def scene(self) -> Scene:
        shapes = (Shape("circle", "red", "", 100, 60, 40), Shape("square", "blue", "small", 120, 220, 28))
        return Scene(shapes, 100, (0, 0, 0), 0, 0)

    @pytest.mark.parametrize(
        ("sentence", "verdict"),
        [
            ("a red circle above a small blue square", True),
            ("A small blue square below a red circle.", True),
            ("there is a red circle and a blue square", True),
            ("two shapes a blue square and a red circle", True),
            ("a red circle", True),
            ("a red circle left of a blue square", True),  # by 20 pixels
            ("a red circle below a blue square", False),
            ("a red square above a blue circle", False),
            ("a small red circle", False),
            ("a large blue square", False),
            ("three shapes a red circle and a blue square", False),
            ("a red circle and a red circle", False),
            ("a green circle", False),
            ("red circle a", False),
            ("", False),
        ],
    )
    def test_the_checker_knows_truth(self, sentence: str, verdict: bool) -> None:
        assert is_true(sentence, self.scene()) is verdict

    def test_every_description_is_true_of_its_scene_and_rarely_of_another(self) -> None:
        generator = random.Random(0)
        scenes = [draw_scene(generator) for _ in range(300)]
        sentences = [describe(scene, generator) for scene in scenes]
        assert all(len(set(five)) == 5 for five in sentences)
        assert all(is_true(s, scene) for five, scene in zip(sentences, scenes, strict=True) for s in five)
        elsewhere = [
            is_true(s, scene) for five, scene in zip(sentences, scenes[1:], strict=False) for s in five
        ]
        assert sum(elsewhere) / len(elsewhere) < 0.15

    def test_shapes_are_where_the_scene_says(self) -> None:
        for scene in (draw_scene(random.Random(seed)) for seed in range(5)):
            top = scene.shapes[-1]  # nothing is painted over the last one
            assert render(scene).size == (299, 299)
            painted = render(scene).getpixel((round(top.x), round(top.y)))
            assert max(painted) - min(painted) > 40 or top.colour in ("black", "white")

    def test_the_same_seed_writes_the_same_set_and_it_is_drawn_once(self, tmp_path: Path) -> None:
        one = read_toy(tmp_path / "a", {"train": 3, "val": 2}, seed=1)
        other = read_toy(tmp_path / "b", {"train": 3, "val": 2}, seed=1)
        assert [r.captions for r in one] == [r.captions for r in other]
        assert [r.path.read_bytes() for r in one] == [r.path.read_bytes() for r in other]
        stamp = one[0].path.stat().st_mtime_ns
        read_toy(tmp_path / "a", {"train": 3, "val": 2}, seed=1)
        assert one[0].path.stat().st_mtime_ns == stamp
        assert [r.captions for r in read_toy(tmp_path / "c", {"train": 3, "val": 2}, seed=2)] != [
            r.captions for r in one
        ]

    def test_nothing_that_is_there_is_replaced(self, tmp_path: Path) -> None:
        read_toy(tmp_path / "a", {"train": 3}, seed=1)
        with pytest.raises(InputError, match=r"holds a toy set drawn with .* but needed is .*'seed': 2"):
            read_toy(tmp_path / "a", {"train": 3}, seed=2)
        assert len(read_toy(tmp_path / "a", {"train": 3}, seed=1)) == 3
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        with pytest.raises(InputError, match="holds files but no toy set"):
            read_toy(tmp_path / "mine", {"train": 3}, seed=1)
        assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"

    def test_the_written_scenes_agree_with_their_captions(self, tmp_path: Path) -> None:
        records = read_toy(tmp_path / "a", {"val": 5}, seed=1)
        scenes = read_scenes(tmp_path / "a" / "captions_val.json")
        assert all(is_true(caption, scenes[r.image_id]) for r in records for caption in r.captions)
        assert {shape.kind for scene in scenes.values() for shape in scene.shapes} <= set(KINDS)
