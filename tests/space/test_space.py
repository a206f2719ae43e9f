"""The Space as its users meet it: a server of its own, called by the real client and by a real browser."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect, sync_playwright
from support import ESSAYS, ROOT
from transformers import AutoTokenizer

from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from pipeline_emodeberta import EmotionPipeline

TEXT = "They knew about the cracks for two years and sent the night shift in anyway."
NASTY = "<b>bold</b> <script>document.title = 'taken over'</script> & \"quoted\" words"
ANSWERED = "#verdict p"


@pytest.fixture(scope="module")
def space(fused, tmp_path_factory):
    """The address of a Space that shows an ensemble, and its process."""
    home = tmp_path_factory.mktemp("space")
    for name in ("app.py", "delimited.py", "precision.py", "requirements.txt", "README.md"):  # alone, as in a Space
        shutil.copy(ROOT / "space" / name, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"EMODEBERTA_MODEL": str(fused[0] / "all"), "GRADIO_SERVER_PORT": str(port)}
    env |= {"HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
    with open(home / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=home, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=10).close()
            break
        except OSError:
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
    yield url, process, home
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert not list(home.glob("emodeberta-space-*"))


@pytest.fixture(scope="module")
def essays():
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file, delimiter="\t")]


@pytest.fixture(scope="module")
def local(fused):
    """What the model says, without a Space."""
    folder = fused[0] / "all"
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(folder)
    return EmotionPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


def test_many_callers_get_their_own_answers(space, essays, local):
    expected = [result["scores"] for result in local(essays[:48], return_members=True)]

    def call(caller: int) -> list[dict]:
        client = Client(space[0], verbose=False)
        return [client.predict(essays[caller * 6 + turn], api_name="/classify") for turn in range(6)]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for of_caller in pool.map(call, range(8)) for answer in of_caller]
    for answer, scores in zip(answers, expected, strict=True):
        assert answer["scores"] == pytest.approx(scores, abs=1e-4)
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
        assert set(answer["members"]) == {"first", "cls", "other"}


def test_bad_input_is_answered_in_words(space, tmp_path):
    client = Client(space[0], verbose=False)
    for text, said in (
        ("", "There is no text here."),
        ("\t\n", "There is no text here."),
        ("word " * 5000, "This text has 25,000 characters; at most 20,000 are read."),
        (7, "This is no text but int"),
    ):
        answer = client.predict(text, api_name="/classify")
        assert set(answer) == {"error"}
        assert answer["error"].startswith(said)
    assert client.predict("😡", api_name="/classify")["label"]
    assert "the model read the first" in client.predict("word " * 900, api_name="/classify")["note"]
    for name, content, column, said in (
        ("a.txt", b"text\nx\n", "", "upload a .csv or .tsv file"),
        ("a.csv", b"text\n\xff\xfe\n", "", "not UTF-8"),
        ("b.csv", b"a,b\n1,2\n", "text", "no column 'text'; its columns are 'a', 'b'"),
        ("c.csv", b"text,more\n1,2,3\n5,6\n", "", "Row 2: 3 fields; want 2"),
        ("d.csv", b'"text"\nfine\n"a" b\n', "", "Row 3: ',' expected after"),
        ("e.csv", b"text\n", "", "no rows below its header"),
        ("f.csv", b"", "", "empty; want a header and rows"),
        ("g.csv", b"text\n" + b"x\n" * 5001, "", "more than 5,000 rows"),
        ("h.csv", b"text,error\nx,y\n", "", "has a column 'error' already"),
        ("i.csv", b"text,text\nx,y\n", "", "names 'text' twice"),
        ("k.csv", b",tweet,label\n0,what a lovely day,joy\n", "", "columns are 'column_1', 'tweet', 'label'"),
        ("l.csv", ",".join(f"c{n}" for n in range(150_000)).encode() + b"\n", "", "150,000 columns; at most 200"),
        ("j.csv", b"<img src=x>,b\nx,y\n", "", "columns are '&lt;img src=x&gt;', 'b'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=said):
            client.predict(handle_file(tmp_path / name), column, api_name="/classify_batch")
    (tmp_path / "secret.csv").write_text("text\nnot yours\n")
    for file, column in (
        ({"path": str(tmp_path / "secret.csv")}, ""),
        ({"path": "http://127.0.0.1/a.csv"}, ""),
        (None, ""),
    ):
        body = json.dumps({"data": [file, column]}).encode()
        call = urllib.request.Request(
            f"{space[0]}gradio_api/call/classify_batch", body, {"Content-Type": "application/json"}
        )
        event = json.load(urllib.request.urlopen(call))["event_id"]
        answer = urllib.request.urlopen(f"{space[0]}gradio_api/call/classify_batch/{event}").read().decode()
        assert answer.startswith("event: error"), answer
    assert "Traceback" not in (space[2] / "log").read_text()


def test_a_file_comes_back_with_answers_and_leaves_no_trace(space, tmp_path, essays):
    with open(tmp_path / "in.tsv", "w", newline="", encoding="utf-8") as file:
        rows = [["number", "body"], *([index, text] for index, text in enumerate(essays[:20])), [20, ""]]
        csv.writer(file, delimiter="\t").writerows(rows)
    client = Client(space[0], verbose=False, download_files=tmp_path / "down")
    with open(client.predict(handle_file(tmp_path / "in.tsv"), "body", api_name="/classify_batch")) as file:
        read = list(csv.DictReader(file))
    assert [row["body"] for row in read] == [*essays[:20], ""]
    for row in read[:20]:
        scores = {name[12:]: float(value) for name, value in row.items() if name.startswith("probability_")}
        assert row["predicted_label"] == max(scores, key=scores.get)
        assert sum(scores.values()) == pytest.approx(1, abs=1e-4)
    assert read[20]["predicted_label"] == ""
    assert read[20]["error"].startswith("There is no text here.")
    assert essays[0][:40] not in (space[2] / "log").read_text()


def test_what_a_spreadsheet_saves_is_read(space, tmp_path):
    client = Client(space[0], verbose=False, download_files=tmp_path / "down")
    (tmp_path / "in.csv").write_bytes('\ufefftext;n\n"They knew; all of them, for years.";1\n\nYes.;2\n\n\n'.encode())
    with open(client.predict(handle_file(tmp_path / "in.csv"), api_name="/classify_batch")) as file:
        read = list(csv.DictReader(file))
    assert [row["text"] for row in read] == ["They knew; all of them, for years.", "Yes."]
    assert [row["n"] for row in read] == ["1", "2"]
    assert [bool(row["error"]) for row in read] == [False, False]
    (tmp_path / "in.csv").write_bytes("text\t=cmd\t\r=1+1\t-5\t\r@x\t+SUM(A1)\t\r\t\t\r".encode("utf-16"))
    with open(client.predict(handle_file(tmp_path / "in.csv"), api_name="/classify_batch")) as file:
        read = list(csv.DictReader(file))
    assert [(row["text"], row["'=cmd"]) for row in read] == [("'=1+1", "-5"), ("'@x", "'+SUM(A1)")]


def test_the_space_reads_with_a_copy_of_the_same_file():
    assert (ROOT / "space" / "delimited.py").read_bytes() == (ROOT / "trainer_ext/data/delimited.py").read_bytes()


def test_a_long_file_does_not_hold_up_one_text(space, tmp_path, essays):
    (tmp_path / "long.csv").write_text("text\n" + "".join(f'"{essays[0][:300]} {n}"\n' for n in range(5000)))
    client = Client(space[0], verbose=False)
    batch = client.submit(handle_file(tmp_path / "long.csv"), api_name="/classify_batch")
    time.sleep(1)
    assert client.predict(TEXT, api_name="/classify")["label"]
    assert not batch.done()
    batch.result(timeout=300)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()


def opened(browser, url: str, width: int, dark: bool):
    """The page, with everything blocked that is not on this machine; and the list of what went wrong on it."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    wrong: list[str] = []

    def local_only(route):
        if route.request.url.startswith((url, "data:", "blob:")):
            return route.continue_()
        wrong.append(f"asked for {route.request.url}")
        return route.abort()

    page.route("**/*", local_only)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    page.get_by_label("Your text").wait_for(timeout=60_000)
    return page, wrong


def test_one_text_in_the_browser(space, browser, local):
    page, wrong = opened(browser, space[0], 1280, dark=False)
    # By keyboard alone.
    page.get_by_label("Your text").focus()
    page.keyboard.type(TEXT)
    page.keyboard.press("Shift+Enter")
    page.locator("#why p").wait_for(timeout=60_000)
    (result,) = local([TEXT], return_members=True)
    bars = page.locator("#bars").inner_text()
    for label, score in result["scores"].items():
        assert label in bars
        assert f"{score:.0%}" in bars
    assert result["label"] in page.locator(ANSWERED).inner_text()
    members = page.locator("#members").inner_text()
    for name, said in result["members"].items():
        assert name in members
        assert said["label"] in members
    words = page.locator("#words").inner_text().split()
    assert {"cracks", "anyway."} <= set(words)
    assert page.locator("#words [style*=background]").count() > 5

    def answer(text: str) -> str:
        before = page.locator(ANSWERED).inner_text()
        page.get_by_label("Your text").fill(text)
        page.get_by_role("button", name="Classify", exact=True).click()
        page.wait_for_function(
            "before => { const said = document.querySelector('#verdict p'); return said && said.innerText != before }",
            arg=before,
            timeout=60_000,
        )
        return page.locator(ANSWERED).inner_text()

    for region in ("#verdict", "#why"):  # or a screen reader says nothing
        expect(page.locator(region)).to_have_attribute("aria-live", "polite")
    assert answer("  ").startswith("There is no text here.")
    assert answer("x" * 100_000).startswith("This text has 100,000 characters; at most 20,000")
    answer(NASTY)
    page.locator("#words").get_by_text("<script>document.title").wait_for(timeout=60_000)
    assert page.title() == "EmoDeBERTa"
    page.get_by_role("button", name="I am so happy today!").click()
    expect(page.get_by_label("Your text")).to_have_value("I am so happy today!")
    assert wrong == []
    page.close()


def test_a_file_in_the_browser_on_a_dark_phone(space, browser, tmp_path, essays):
    page, wrong = opened(browser, space[0], 390, dark=True)
    with open(tmp_path / "essays.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["id", "text"], *([index, text] for index, text in enumerate(essays[:199])), [199, NASTY]]
        )
    page.get_by_role("tab", name="Many texts").click()
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "essays.csv")
    page.get_by_text("essays.csv").wait_for()
    page.get_by_role("button", name="Classify the file").click()
    page.locator("#summary p").wait_for(timeout=120_000)
    told = page.locator("#summary p").inner_text()
    assert told.startswith("200 of 200 rows classified")
    assert re.search(r"\. \w+ \d+%(, \w+ \d+%)+\.$", told)  # the chart, for those who do not see it
    assert page.locator("#summary").get_attribute("aria-live") == "polite"
    page.locator("#chart canvas, #chart svg").first.wait_for()
    page.locator("#results").get_by_text("predicted_label").first.wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the results").or_(
            page.get_by_role("button", name="Download the results")
        ).first.click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [*essays[:199], NASTY]
    # What stood there is not the result of a file that cannot be read.
    page.get_by_label("Column of the texts").fill("body")
    page.get_by_role("button", name="Classify the file").click()
    page.get_by_text("The file has no column 'body'").wait_for()
    assert page.locator("#summary p").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "dark" in page.evaluate("document.body.className")
    assert page.title() == "EmoDeBERTa"
    assert wrong == []
    page.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "set EMODEBERTA_MODEL to a model's folder or to its id on the Hub"),
        ({"EMODEBERTA_MODEL": "x", "EMODEBERTA_ABSTAIN_BELOW": "40"}, "EMODEBERTA_ABSTAIN_BELOW is 40; want a prob"),
    ],
)
def test_wrong_settings_are_said(settings, says, monkeypatch):
    monkeypatch.delenv("EMODEBERTA_MODEL", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(ROOT / "space")  # as for a script that is started
    with pytest.raises(SystemExit, match=says):
        runpy.run_path(ROOT / "space" / "app.py", run_name="__main__")


def test_a_space_without_its_model_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "space" / "app.py"], cwd=tmp_path, env=os.environ | {"EMODEBERTA_MODEL": "/nowhere"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode
    assert done.stderr.strip().splitlines()[-1].startswith("error: /nowhere: not a model to load")
