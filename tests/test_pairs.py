"""Tables and folders of the user's own: every caption is read as it stands, or its line is named."""

import json
import os
from pathlib import Path

import pytest

from captioning.data import Annotated, read_pairs
from captioning.errors import InputError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def captions(records: list[Annotated]) -> dict[str, tuple[str, ...]]:
    return {record.image_id: record.captions for record in records}


class TestTables:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("m.csv", 'image,caption\na.jpg,"One, two"\nb.jpg,Three\na.jpg,Four\n'),
            ("m.csv", 'image;caption\r\na.jpg;One, two\r\nb.jpg;"Three"\r\na.jpg;Four\r\n'),
            ("m.csv", 'Image| comment_number| comment\na.jpg| 0| "One, two"\nb.jpg| 0| Three\na.jpg| 1| Four'),
            ("m.tsv", "image\tcaption\na.jpg\tOne, two\nb.jpg\tThree\na.jpg\tFour\n"),
            ("m.CSV", 'sentence,file_name\n"One,\n two",a.jpg\n Three ,./b.jpg\nFour,a.jpg\n'),
            ("m.jsonl", '{"image": "a.jpg", "caption": ["One, two", "Four"]}\n{"file_name": "b.jpg", "text": "Three"}'),
        ],
    )  # fmt: skip
    def test_one_image_may_have_several_lines(self, tmp_path: Path, name: str, text: str) -> None:
        records = read_pairs(write(tmp_path / name, text), val_share=0.5)
        assert captions(records) == {"a.jpg": ("One, two", "Four"), "b.jpg": ("Three",)}
        assert sorted(record.split for record in records) == ["train", "val"]
        assert records[0].path == tmp_path / "a.jpg"

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("m.csv", "image,caption,split\na.jpg,a dog, running,val\n",
             "line 2: found 4 columns where the header has 3; .* captions with ',' quoted"),
            ("m.csv", "image,caption\na.jpg,a cat\nb.jpg,a dog, running\n", "line 3: found 3 columns"),
            ("m.csv", "image,caption,split\na.jpg,a dog\n", "line 2: found 2 columns"),
            ("m.tsv", "image\tcaption\na.jpg\ta\tdog\n", "line 2: found 3 columns .* tabs between columns only"),
            ("m.csv", 'image,caption\na.jpg,x\nb.jpg,"a cat\nc.jpg,y\n',
             "line 3: found cells that can't be separated .*; .* every quotation mark closed"),
            ("m.csv", 'image,caption\nb.jpg,"a cat\nc.jpg,y\nd.jpg,z"\n', "line 2: found a quoted cell that holds the next record"),
            ("m.csv", f"image,caption\na.jpg,{'x' * 200_000}\n", "line 2: found cells .*field larger than"),
            ("m.csv", "picture,caption\na,b\n", r"line 1: found the columns \['picture', 'caption'\]; .* 'image'"),
            ("m.csv", "image,caption,text\na,b,c\n", "found the columns 'caption' and 'text'; .* one caption"),
            ("m.csv", "", "the column 'image'"),
            ("m.csv", "image,caption\n", "has no pictures"),
            ("m.csv", "image,caption\n,a dog\n", "line 2: found image = ''"),
            ("m.csv", "image,caption\na\0b,a dog\n", r"line 2: found image = 'a.*x00b'"),
            ("m.csv", "image,caption,split\na.jpg,x,holdout\n", "line 2: found split = 'holdout'; .* train, val"),
            ("m.csv", "image,caption,split\na.jpg,x,train\nb.jpg,y,\n", "line 3: found no split; .* in every record, or in none"),
            ("m.jsonl", "{oops\n", r"not JSON \(line 1\)"),
            ("m.jsonl", '{"image": "a", "caption": "x"}\n\n{"image": "b"\n', r"not JSON \(line 3\)"),
            ("m.jsonl", '["a.jpg", "x"]\n', "line 1: found .* an object with image and caption"),
            ("m.jsonl", '{"image": "a.jpg", "caption": ["x", 3]}\n', "list of texts"),
            ("m.jsonl", '{"image": "a.jpg", "caption": NaN}\n', "found caption = NaN"),
            ("m.jsonl", '{"image": "a.jpg", "caption": "x", "caption": "y"}\n', "'caption' comes twice"),
            ("m.txt", "a b", "needed is a folder, .csv, .tsv or .jsonl, found .txt"),
        ],
    )  # fmt: skip
    def test_a_line_of_another_form_is_named(
        self, tmp_path: Path, name: str, text: str, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            read_pairs(write(tmp_path / name, text))

    def test_a_quotation_mark_in_a_tsv_is_one(self, tmp_path: Path) -> None:
        lines = "".join(f'p{i:02d}.png\t"a cat number {i}\n' for i in range(31))
        records = read_pairs(write(tmp_path / "m.tsv", f"image\tcaption\n{lines}"))
        assert len(records) == 31 and records[5].captions == ('"a cat number 5',)

    @pytest.mark.parametrize(
        ("name", "split"),
        [("validation", "val"), ("dev", "val"), ("Train", "train"), (" test ", "test"), ("VAL", "val")],
    )
    def test_other_names_of_splits_are_known(self, tmp_path: Path, name: str, split: str) -> None:
        records = read_pairs(write(tmp_path / "m.csv", f"image,caption,split\na.jpg,x,{name}\n"))
        assert records[0].split == split

    def test_empty_captions_and_blank_lines_are_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = "image,caption\na.jpg,\n\nb.jpg,x\n,\na.jpg,y\nc.jpg, \n"
        assert captions(read_pairs(write(tmp_path / "m.csv", text))) == {
            "a.jpg": ("y",),
            "b.jpg": ("x",),
            "c.jpg": (),
        }
        assert "m.csv: 2 empty captions left out: line 2, line 7" in caplog.text
        assert "m.csv: 2 blank lines: line 3, line 5" in caplog.text
        lines = '{"image": "a", "caption": null}\n\n{"image": "b", "caption": ["", "x"]}\n'
        assert captions(read_pairs(write(tmp_path / "n.jsonl", lines))) == {"a": (), "b": ("x",)}
        assert "n.jsonl: 2 empty captions left out: line 1, line 3" in caplog.text
        assert "n.jsonl: 1 blank lines: line 2" in caplog.text
        (tmp_path / "n.jsonl").write_text('{"image": "a", "caption": "x"}\n{"image": "a", "caption": []}\n')
        assert [record.captions for record in read_pairs(tmp_path / "n.jsonl")] == [("x",)]
        assert "n.jsonl: 1 records left out that hold an empty list of captions: a" in caplog.text

    def test_captions_keep_their_words_whatever_separates_them(self, tmp_path: Path) -> None:
        file = write(tmp_path / "m.CSV", 'Image, caption\na.jpg,"a dog\nruns"\nb.jpg, a\u2028cat \n')
        assert captions(read_pairs(file)) == {"a.jpg": ("a dog runs",), "b.jpg": ("a cat",)}
        lines = [{"image": 7, "caption": ["a dog", "it\x85runs"]}, {"image": "b", "caption": "x"}]
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        assert captions(read_pairs(write(tmp_path / "m.jsonl", text))) == {
            "7": ("a dog", "it runs"),
            "b": ("x",),
        }

    def test_a_file_that_is_no_text_and_a_wrong_share_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match="not UTF-8"):
            read_pairs(tmp_path / "m.csv")
        with pytest.raises(InputError, match="val_share is 2"):
            read_pairs(tmp_path, val_share=2)

    @pytest.mark.parametrize(
        ("pictures", "share", "held_out"), [(4, 0.1, 1), (2, 0.9, 1), (1, 0.5, 0), (4, 0, 0)]
    )
    def test_few_pictures_are_validated_and_trained_on(
        self, tmp_path: Path, pictures: int, share: float, held_out: int
    ) -> None:
        lines = "".join(f"{number}.png,a dog\n" for number in range(pictures))
        records = read_pairs(write(tmp_path / "m.csv", f"image,caption\n{lines}"), val_share=share)
        assert sum(record.split == "val" for record in records) == held_out


class TestFolders:
    def folder(self, path: Path, *names: str) -> Path:
        for name in names:
            write(path / name, f"a {Path(name).stem}\n\nit runs\n" if name.endswith(".txt") else "")
        return path

    def test_captions_stand_beside_the_pictures(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "a.jpg", "a.txt", "b.jpg", "b.txt")
        records = read_pairs(tmp_path, val_share=0.5)
        assert {r.path: r.captions for r in records} == {
            tmp_path / "a.jpg": ("a a", "it runs"),
            tmp_path / "b.jpg": ("a b", "it runs"),
        }
        assert {record.split for record in records} == {"train", "val"}
        (tmp_path / "b.txt").unlink()
        with pytest.raises(InputError, match="found 1 pictures without one, first b.jpg"):
            read_pairs(tmp_path)

    def test_what_has_a_text_is_tried_and_everything_else_is_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.folder(
            tmp_path,
            "a.avif",
            "a.txt",
            "b.heic",
            "b.txt",
            "c.jpg",
            "c.txt",
            "c.json",
            "d.txt",
            "._c.jpg",
            "e.xyz",
        )
        (tmp_path / "more").mkdir()
        assert list(captions(read_pairs(tmp_path))) == ["a.avif", "b.heic", "c.jpg"]
        assert (
            "2 files left out that have neither a picture's suffix nor a .txt: c.json, e.xyz" in caplog.text
        )
        assert "1 texts left out that have no picture: d.txt" in caplog.text
        assert "1 subfolders left out: more" in caplog.text

    def test_a_folder_without_pictures_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has no pictures"):
            read_pairs(tmp_path)

    @pytest.mark.skipif(os.name == "nt", reason="file names are text there")
    def test_a_file_name_need_not_be_text(self, tmp_path: Path) -> None:
        for suffix in (b"png", b"txt"):
            with open(os.fsencode(tmp_path) + b"/caf\xe9." + suffix, "w") as file:
                file.write("a bar\n")
        (record,) = read_pairs(tmp_path)
        assert record.image_id == "caf\\xe9.png" and record.path.exists()
        # A file whose name looks like that id is another picture.
        self.folder(tmp_path, "caf\\xe9.png", "caf\\xe9.txt")
        with pytest.raises(InputError, match="means two pictures"):
            read_pairs(tmp_path)

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
    def test_the_layout_of_hugging_face_is_read(
        self, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        text = (
            "file_name,text\n0.png,a dog\n"
            if name.endswith("csv")
            else '{"file_name": "0.png", "text": "a dog"}\n'
        )
        write(self.folder(tmp_path / "flat", "0.png", "1.png") / name, text)
        (record,) = read_pairs(tmp_path / "flat")
        assert record == Annotated("0.png", tmp_path / "flat" / "0.png", "train", ("a dog",))
        assert "1 pictures left out that the metadata do not name: 1.png" in caplog.text
        for split in ("train", "validation"):
            write(tmp_path / "split" / split / name, text)
        records = read_pairs(tmp_path / "split")
        assert [(r.image_id, r.split) for r in records] == [
            ("train/0.png", "train"),
            ("validation/0.png", "val"),
        ]
        assert records[1].path == tmp_path / "split" / "validation" / "0.png"

    def test_subfolders_named_in_one_table_are_its_splits(self, tmp_path: Path) -> None:
        file = write(tmp_path / "metadata.csv", "file_name,text\ntrain/0.png,a dog\nvalidation/0.png,a cat\n")
        assert [record.split for record in read_pairs(tmp_path)] == ["train", "val"]
        write(file, "file_name,text\n./train/0.png,a dog\n./validation/0.png,a cat\n")
        assert [record.split for record in read_pairs(tmp_path)] == ["train", "val"]
        write(file, "file_name,text,split\ntrain/0.png,a dog,test\nvalidation/0.png,a cat,test\n")
        assert [record.split for record in read_pairs(tmp_path)] == ["test", "test"]
        write(file, "file_name,text\ntrain/0.png,a dog\nmore/0.png,a cat\n")
        assert [record.split for record in read_pairs(tmp_path, val_share=0)] == ["train", "train"]

    def test_another_layout_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "one" / "metadata.csv", "file_name,text\n0.png,a dog\n")
        with pytest.raises(InputError, match="one is named after no split"):
            read_pairs(tmp_path)
        write(tmp_path / "metadata.csv", "file_name,text\n0.png,a dog, too\n")
        with pytest.raises(InputError, match="line 2: found 3 columns"):
            read_pairs(tmp_path)
        write(tmp_path / "metadata.jsonl", "")
        with pytest.raises(InputError, match="holds metadata.jsonl and metadata.csv"):
            read_pairs(tmp_path)

    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ('{"file_name": "0.png", "text": 3}', "caption = 3"),
            ('{"file_name": "", "text": "x"}', "image = ''"),
        ],
    )
    def test_a_line_in_a_subfolder_is_named_with_it(self, tmp_path: Path, line: str, found: str) -> None:
        write(tmp_path / "train" / "metadata.jsonl", line)
        with pytest.raises(InputError, match=f"train/metadata.jsonl line 1: found {found}"):
            read_pairs(tmp_path)
