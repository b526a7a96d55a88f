import math
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from export.errors import ResourceMissing
from pipeline.report import format_bytes, format_count, format_seconds, terminal_summary
from pipeline.report_html import render_report_html, write_report_html

REPORT = {
    "microstill": "9.8.7",
    "recipe": "insects",
    "recipe_text": 'name = "<script>alert(1)</script>"',
    "student": "resnet8",
    "teacher": "resnet56",
    "dataset": {
        "name": "insects",
        "classes": 3,
        "labels": ["ant", "bee & wasp", "$cow_$"],
        "train": 1200,
        "validation": 30,
        "test": 31,
        "resolution": 32,
        "channels": 3,
    },
    "teacher_top1": 93.25,
    "student_float_top1": 91.5,
    "student_qat_top1": 91.75,
    "student_int8_top1": 91.0,
    "trained_beside": {"student_validation_top1": 90.5, "peer1_validation_top1": 89.25},
    "tflite_bytes": 98304,
    "arena_bytes": 51200,
    "macs": 12_500_000,
    "parameters": 78_000,
    "fits": True,
    "stages": [
        {"name": "teacher", "seconds": 81.0, "reused": True},
        {"name": "distil", "seconds": 20.5, "reused": False},
        {"name": "quantize", "seconds": 2.25, "reused": False},
    ],
    "curves": {
        "loaded": [],
        "teacher": [{"epoch": 1, "learning_rate": 0.1, "cross_entropy": 0.5, "train_top1": 88.0}],
        "distil": [
            {
                "epoch": 1,
                "learning_rate": 0.1,
                "soft_cross_entropy": 9.0,
                "netaug": 2.0,
                "validation_top1": 60.0,
            },
            {
                "epoch": 2,
                "learning_rate": 0.05,
                "soft_cross_entropy": 0.125,
                "netaug": 1.0,
                "validation_top1": 71.5,
            },
        ],
    },
    "confusion": [[10, 0, 1], [3, 7, 0], [0, 2, 8]],
    "layers": [
        {"name": "first", "sqnr_db": 40.0, "top1_alone": 90.25},
        {"name": "worst", "sqnr_db": 20.0, "top1_alone": 85.5},
        {"name": "exact", "sqnr_db": math.inf, "top1_alone": None},
    ],
    "parity": [
        {"name": "reference equals TFLM", "value": 0, "unit": "bytes", "bound": 0, "passed": True},
        {"name": "LiteRT agrees", "value": 97.5, "unit": "%", "bound": 98.0, "passed": False},
        {"name": "largest step", "value": 26.0, "unit": "", "bound": None, "passed": None},
    ],
    "budget": {
        "board": "generic-256k",
        "sram_bytes": 60000,
        "sram_limit_bytes": 262144,
        "flash_bytes": 1500000,
        "flash_limit_bytes": 1000000,
        "arena_bytes": 51200,
        "fits": True,
        "contributors": [
            {"name": "stack", "memory": "sram", "bytes": 8192, "note": "reserved"},
            {"name": "arena", "memory": "sram", "bytes": 51200, "note": ""},
            {"name": "model", "memory": "flash", "bytes": 1500000, "note": ""},
        ],
    },
    "engine": {
        "cores": {
            "m4": {
                "instructions": 4_000_000,
                "sram_bytes": 30000,
                "flash_bytes": 90000,
                "layers": [
                    {
                        "index": 0,
                        "operator": "CONV_2D",
                        "output_shape": [1, 32, 32, 16],
                        "macs": 1_500_000,
                        "instructions": 3_000_000,
                        "instructions_per_mac": 2.0,
                    },
                    {
                        "index": 1,
                        "operator": "RELU",
                        "output_shape": [1, 10],
                        "macs": 0,
                        "instructions": 1_000_000,
                        "instructions_per_mac": None,
                    },
                ],
            }
        },
        "images": 2,
        "read": [{"true": "ant", "read": "ant"}, {"true": "ant", "read": "$cow_$"}],
        "latency": {"board": "generic-256k", "clock_hz": 80_000_000, "ms_estimated": 71.25},
    },
    "plan_svg": '<svg viewBox="0 0 9 9"><title>who &lt; lies where</title></svg>',
    "files": [{"path": "model.tflite", "bytes": 98304, "sha256": "0123456789abcdef" * 4}],
    "tools": {"torch": "2.15.0"},
}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects the text, attributes and table rows of a page, and holds its tags to be balanced."""

    def __init__(self, html):
        super().__init__()
        self.attributes, self.texts, self.open, self.rows, self.tags = [], [], [], [], set()
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        text = " ".join(data.split())
        if text and "style" not in self.open:
            self.texts.append(text)
            if "tr" in self.open:
                self.rows[-1].append(text)

    @property
    def text(self):
        return " ".join(self.texts)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


@pytest.fixture(scope="module")
def html():
    return render_report_html(REPORT)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_needs_nothing_from_outside(html, page):
    references = [
        value for name in ("src", "href", "xlink:href", "action", "srcset") for value in page.values(name)
    ]
    assert references and all(value.startswith(("#", "data:image/png;base64,")) for value in references)
    assert not page.tags & {"script", "link", "iframe", "object", "img"}
    assert "@import" not in html and "url(http" not in html


def test_identifiers_are_unique_and_references_resolve(html, page):
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    wanted = {value[1:] for value in page.values("xlink:href") if value.startswith("#")}
    wanted |= {part.split(")")[0] for part in html.split("url(#")[1:]}
    assert wanted and wanted <= set(identifiers)


def test_chart_colours_follow_the_page(html):
    assert "var(--series-1)" in html and "var(--series-2)" in html and "var(--ink)" in html
    assert not any(sentinel in html for sentinel in ("#010101", "#020202", "#030303", "#010505", "#020505"))


def test_headline(page):
    assert "resnet8 on insects" in page.texts
    assert (
        "distilled from resnet56 · 3 classes, 32 × 32 RGB · 1,200 training, 30 validation, 31 test images"
        in page.text
    )
    for text in ("93.25 %", "91.50 %", "91.75 %", "91.00 %", "−1.75 points", "+0.25 points", "−0.75 points"):
        assert page.texts.count(text) == 1
    for text in ("96.0 KiB", "50.0 KiB", "12.5 M", "78 k", "fits generic-256k"):
        assert text in page.texts


def test_every_curve_is_drawn_and_named(page):
    for text in ("cross entropy 0.5", "train 88", "soft cross entropy 0.125", "netaug 1", "validation 71.5"):
        assert text in page.texts
    assert "· 1 epoch · learning rate 0.1 loss" in page.text and "learning rate 0.1 to 0.05" in page.text
    assert page.values("aria-label").count("distil: loss") == 1 and "loaded" not in page.text
    assert {"0.3", "3"} <= set(page.texts)  # soft cross-entropy spans a factor 72: a logarithmic axis


def test_confusion_lists_the_mistakes_largest_first(page):
    assert "6 of 31 test images are misread by the int8 model." in page.texts
    mistakes = [row for row in page.rows if len(row) == 3 and row[2] in "123"]
    assert mistakes == [["bee & wasp", "ant", "3"], ["$cow_$", "bee & wasp", "2"], ["ant", "$cow_$", "1"]]


def test_memory_shows_contributors_and_the_limit(html, page):
    assert ["arena", "51,200 B"] in page.rows and ["stack", "reserved", "8,192 B"] in page.rows
    assert ["other", "608 B"] in page.rows  # 60,000 - 51,200 - 8,192
    widths = [
        float(value[len("width:") :].split("%")[0])
        for value in page.values("style")
        if "opacity" in value and value.startswith("width")
    ]
    sram, flash = widths[:3], widths[3:4]
    assert sram == pytest.approx([100 * part / 262144 for part in (51200, 8192, 608)], abs=1e-3)
    assert flash == [100.0] and 'class="limit" style="left:66.667%"' in html  # 1.5 of 1 MB
    assert html.count('class="memory over"') == 1


def test_layers_are_ranked_by_error(page):
    layers = [row for row in page.rows if row[0] in ("first", "worst", "exact")]
    assert layers == [  # 20 dB is a tenth, 40 dB a hundredth of the amplitude
        ["worst", "10.00 %", "20.0 dB", "85.50 %"],
        ["first", "1.00 %", "40.0 dB", "90.25 %"],
        ["exact", "0.00 %", "exact"],
    ]


def test_parity_stages_and_provenance(page):
    assert ["LiteRT agrees", "97.5 %", "98 %", "failed"] in page.rows
    assert ["reference equals TFLM", "0 bytes", "0 bytes", "passed"] in page.rows
    assert ["largest step", "26"] in page.rows
    assert ["teacher", "reused", "1 min 21 s"] in page.rows and ["quantize", "2.2 s"] in page.rows
    assert ["model.tflite", "98,304", "0123456789abcdef" * 4] in page.rows
    assert "torch 2.15.0" in page.text and 'name = "<script>alert(1)</script>"' in page.texts


def test_both_ways_onto_the_device(page):
    assert ["TFLite Micro", "60,000 B", "1,500,000 B"] in page.rows
    assert ["generated C, Cortex-M4", "30,000 B", "90,000 B", "4,000,000"] in page.rows
    assert ["0 CONV_2D", "32×32×16", "1,500,000", "3,000,000", "2.00"] in page.rows
    assert ["1 RELU", "10", "1,000,000"] in page.rows
    assert "outputs equal TFLite Micro's; read as ant, $cow_$, 1 of them right" in page.text
    assert "one inference on generic-256k at 80 MHz: estimated 71.2 ms" in page.texts
    assert "who < lies where" in page.texts


def test_a_core_without_cycles_has_no_time():
    latency = {"board": "pico-2", "clock_hz": 150_000_000, "ms_estimated": None}
    page = Page(
        render_report_html({**REPORT, "engine": {**REPORT["engine"], "read": [], "latency": latency}})
    )
    assert "one inference on pico-2 at 150 MHz: cycles of this core are not estimated" in page.texts
    assert "2 test images on the emulated Cortex-M4: outputs equal TFLite Micro's" in page.texts


def test_the_same_report_gives_the_same_bytes(html):
    assert render_report_html(REPORT) == html


def test_nothing_known_still_makes_a_page():
    assert Page(render_report_html({})).texts == ["Report · microstill", "Report"]


@pytest.mark.parametrize("classes", [13, 40])
def test_many_classes(classes):
    confusion = [[int(true == said) for said in range(classes)] for true in range(classes)]
    labels = [f"类 {index} of a long, long name" for index in range(classes)]
    page = Page(
        render_report_html({"confusion": confusion, "dataset": REPORT["dataset"] | {"labels": labels}})
    )
    assert ("类 12 of a long,…" in page.text) == (classes == 13)
    assert any(value.startswith("data:image/png") for value in page.values("xlink:href"))


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.sets(st.sampled_from(sorted(REPORT))), st.booleans())
def test_any_field_may_be_absent_or_unknown(dropped, unknown):
    kept = {field: value for field, value in REPORT.items() if field not in dropped}
    report = kept | (dict.fromkeys(dropped) if unknown else {})
    page = Page(render_report_html(report))
    assert ("Confusion on the test set" in page.texts) == ("confusion" in kept)
    assert ("Layers by quantisation error" in page.texts) == ("layers" in kept)
    assert ("Training" in page.texts) == ("curves" in kept)
    assert ("Two ways onto the device" in page.texts) == ("engine" in kept)
    assert ({"peer1", "89.25 %"} <= set(page.texts)) == ("trained_beside" in kept)
    console = Console(width=80, record=True, quiet=True)
    console.print(terminal_summary(report))


def test_write_is_all_or_nothing(tmp_path, html):
    write_report_html(REPORT, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "taken").mkdir()
    with pytest.raises(ResourceMissing, match="cannot write the report"):
        write_report_html(REPORT, tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "taken"]


@pytest.mark.parametrize("width", [64, 120])
def test_terminal_summary_is_one_page(width, capsys):
    Console(width=width).print(terminal_summary(REPORT))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36 and max(map(len, lines)) <= width
    rows = [" ".join(line.split()) for line in lines]
    assert rows[0] == "resnet8 · insects · fits generic-256k"
    assert "teacher 93.25 % model 96.0 KiB" in rows and "int8 on TFLite Micro 91.00 % parameters 78 k" in rows
    assert any(row.startswith("SRAM") and row.endswith("58.6 KiB of 256.0 KiB 23 %") for row in rows)
    assert any(row.startswith("flash") and row.endswith("1.4 MiB of 976.6 KiB 150 %") for row in rows)
    assert "LiteRT agrees 97.5 % 98 % failed" in rows and "largest step 26" in rows
    assert "generated C, Cortex-M4 29.3 KiB 87.9 KiB 4,000,000" in rows
    assert "teacher 1 min 21 s reused" in rows and "this run 22.8 s" in rows


@pytest.mark.parametrize(
    ("format_value", "value", "text"),
    [
        (format_bytes, 1023, "1023 B"),
        (format_bytes, 261_264, "255.1 KiB"),
        (format_bytes, 1 << 20, "1.0 MiB"),
        (format_count, 999, "999"),
        (format_count, 25_300_000, "25.3 M"),
        (format_count, 2_500_000_000, "2.5 G"),
        (format_seconds, 3.21, "3.2 s"),
        (format_seconds, 59.97, "1 min 00 s"),
        (format_seconds, 185, "3 min 05 s"),
        (format_seconds, 7500, "2 h 05 min"),
    ],
)
def test_formats(format_value, value, text):
    assert format_value(value) == text


MEASURED = {
    "board": "nucleo-f446re",
    "title": "ST <NUCLEO-F446RE>",
    "emulated": False,
    "date": "2026-11-25",
    "images": 2000,
    "output_bytes": 3,
    "metric": "top1",
    "metric_title": "top-1",
    "scores": {"top1": 91.25},
    "latency_us": {"median": 71500.4, "least": 71499.0, "most": 71900.0},
    "instructions": None,
    "buffer_bytes": 30000,
    "stack_bytes": 700,
    "images_per_second": 13.8,
    "repeats": 0,
    "resets": 0,
    "reconnects": 0,
    "predicted": {
        "scores": {"top1": 91.25},
        "buffer_bytes": 30000,
        "stack_bytes": 500,
        "instructions": 4_000_000,
        "latency_us": 71250.0,
    },
}
EMULATED = MEASURED | {
    "title": "An emulated board",
    "emulated": True,
    "scores": {},
    "latency_us": None,
    "instructions": {"median": 4_000_100.0, "least": 4_000_000.0, "most": 4_000_400.0},
    "repeats": 3,
    "reconnects": 1,
    "predicted": dict.fromkeys(MEASURED["predicted"]) | {"scores": {}},
}


def test_measured_beside_predicted():
    page = Page(render_report_html(REPORT | {"measured": [MEASURED, EMULATED]}))
    assert "measured on ST <NUCLEO-F446RE>, 2026-11-25" in page.texts
    assert ["output bytes equal to TFLite Micro's", "all", "all 6,000 of 2,000 images"] in page.rows
    assert ["top-1, 2,000 images", "91.25 %", "91.25 %"] in page.rows
    assert ["inference, median", "estimated 71,250 µs", "71,500 µs"] in page.rows
    assert ["inference, least to most", "71,499 µs to 71,900 µs"] in page.rows
    assert ["stack, deepest", "500 B", "700 B"] in page.rows
    assert ["on the line", "nothing lost"] in page.rows
    assert "measured on An emulated board, 2026-11-25" in page.texts
    assert ["instructions, emulated, median", "4,000,100"] in page.rows
    assert ["on the line", "3 repeats, 1 reconnect"] in page.rows
    assert "On the device" not in Page(render_report_html(REPORT)).texts


def test_measured_in_the_terminal(capsys):
    Console(width=100).print(terminal_summary(REPORT | {"measured": [MEASURED]}))
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "measured on ST <NUCLEO-F446RE>, 2026-11-25" in rows and "predicted measured" in rows
    assert "top-1, 2,000 images 91.25 % 91.25 %" in rows
    assert "inference, median estimated 71,250 µs 71,500 µs" in rows
