"""The Space as its users meet it: a server of its own, called by the real client and by a real browser."""

import csv
import importlib
import itertools
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
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client, handle_file
from playwright.sync_api import expect, sync_playwright
from support import ESSAYS, ROOT, note_of_times
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.evaluation.plots import COLORS
from trainer_ext.training.checkpoint_source import resolve_checkpoint

TEXT = "They knew about the cracks for two years and sent the night shift in anyway."
NASTY = "<b>bold</b> <script>document.title = 'taken over'</script> & \"quoted\" words"


@pytest.fixture(scope="module")
def space(fused, tmp_path_factory):
    """The address of a Space that shows an ensemble, and its process."""
    home = tmp_path_factory.mktemp("space")
    shutil.copytree(ROOT / "space", home, dirs_exist_ok=True)  # alone, as in a Space
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(fused[0] / "all", home / "all")
    (home / "all" / "README.md").write_text("---\nlanguage: en\n---\n")
    env = os.environ | {"EMODEBERTA_MODEL": str(home / "all"), "GRADIO_SERVER_PORT": str(port)}
    env |= {"HF_MODULES_CACHE": str(home / "modules"), "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
    env |= note_of_times(home / "cache", float32_ms=1, bf16_ms=2)  # as `local`
    with open(home / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=home, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/"
    for _ in range(3000):
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
        assert answer["scores"] == pytest.approx(scores, abs=1e-5)
        assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
        assert set(answer["members"]) == {"first", "cls", "other"}


@pytest.fixture
def batches(fused, monkeypatch):
    """A classifier, and the texts of each batch that it reads."""
    monkeypatch.syspath_prepend(ROOT / "space")  # as for a script that is started
    threads = torch.get_num_threads()
    module = importlib.import_module("classifier")
    read: list[list[str]] = []

    class Recorded(module.Classifier):
        def _classify(self, texts):
            read.append(texts)
            if any("break" in text for text in texts):
                raise RuntimeError(texts[0])
            time.sleep(0.2)
            return super()._classify(texts)

    yield Recorded(str(fused[0] / "all")), read
    torch.set_num_threads(threads)
    for name in ("classifier", "language", "precision"):
        sys.modules.pop(name)


def test_texts_that_wait_together_are_one_batch_and_a_long_list_leaves_room_for_others(batches):
    classifier, read = batches
    many = classifier.submit([f"{'word ' * 40}{number}" for number in range(400)])
    single = [classifier.submit([f"caller {number}"])[0] for number in range(32)]
    answers = [future.result(60) for future in single]
    assert not all(future.done() for future in many)
    assert len({json.dumps(answer["scores"]) for answer in answers}) > 1
    (batch,) = [texts for texts in read if any(text.startswith("caller") for text in texts)]
    assert sum(text.startswith("caller") for text in batch) == 32
    for future in many:
        future.cancel()  # whoever waits no longer costs nothing
    count = len(read)
    classifier(["the end"])
    assert len(read) <= count + 2


def test_a_text_that_breaks_the_model_takes_no_other_with_it_and_is_not_logged(batches, capsys):
    classifier, read = batches
    first = classifier.submit(["the next ones wait together"])
    futures = [classifier.submit([text])[0] for text in ("fine", "my secret must break it", "fine too")]
    answers = [future.result(60) for future in [*first, *futures]]
    assert ["error" in answer for answer in answers] == [False, False, True, False]
    assert any(len(texts) > 1 and "my secret must break it" in texts for texts in read)
    assert "secret" not in capsys.readouterr().err


def test_bad_input_is_answered_in_words(space, tmp_path):
    client = Client(space[0], verbose=False)
    for text, said in (
        ("", "There is no text here."),
        ("\t\n", "There is no text here."),
        ("\u200b", "There is no text here."),
        ("word " * 5000, "This text has 25,000 characters; at most 20,000 are read."),
        (7, "This is no text but int"),
    ):
        answer = client.predict(text, api_name="/classify")
        assert set(answer) == {"error"}
        assert answer["error"].startswith(said)
    assert "This text holds half of a character" in post(space[0], "run/classify", {"data": ["\ud83d"]})[1]
    assert client.predict("😡", api_name="/classify")["label"]
    assert "the model read the first" in client.predict("word " * 900, api_name="/classify")["note"]
    for name, content, column, said in (
        ("a.txt", b"text\nx\n", "", "upload a .csv or .tsv file"),
        ("b.csv", b"a,b\n1,2\n", "text", "no column 'text'; its columns are 'a', 'b'"),
        ("e.csv", b"text\n", "", "no rows below its header"),
        ("f.csv", b"", "", "empty; want a header and rows"),
        ("g.csv", b"text\n" + b"x\n" * 5001, "", "more than 5,000 rows"),
        ("i.csv", b"text,text\nx,y\n", "", "names 'text' twice"),
        ("k.csv", b",tweet,label\n0,what a lovely day,joy\n", "", "columns are 'column_1', 'tweet', 'label'"),
        ("l.csv", ",".join(f"c{n}" for n in range(150_000)).encode() + b"\n", "", "150,000 columns; at most 200"),
        ("j.csv", b"<img src=x>,b\nx,y\n", "", "columns are '<img src=x>', 'b'"),
        ("m.csv", b"\xff,b\nx,y\n", "", "its header is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception, match=said):
            client.predict(handle_file(tmp_path / name), column, api_name="/classify_batch")
    assert "Traceback" not in (space[2] / "log").read_text()


def test_a_row_that_cannot_be_read_has_its_error_and_the_others_their_answers(space, tmp_path):
    client = Client(space[0], verbose=False, download_files=tmp_path / "down")
    for content, errors in (
        (b"text,n\nfine,1\n1,2,3\nfine again,2\n", ["", "Row 3: 3 fields; want 2", ""]),
        (b"text\nfine\n\xff\xfe\nfine again\n", ["", "Row 3: not UTF-8", ""]),
        (b'"text"\nfine\n"a" b\n', ["", "Row 3: ',' expected after"]),
        ("text\nfine\n\u200b\n😡\n".encode(), ["", "There is no text here", ""]),
        (b"n, text\n1,fine\n", [""]),  # a blank before the name
    ):
        (tmp_path / "in.csv").write_bytes(content)
        with open(client.predict(handle_file(tmp_path / "in.csv"), "text", api_name="/classify_batch")) as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(errors)
        for row, said in zip(read, errors, strict=True):
            assert bool(row["predicted_label"]) == (not said)
            assert row["error"].startswith(said)
            assert bool(row["error"]) == bool(said)


def test_the_column_of_the_texts_is_guessed_from_names_then_lengths(space, tmp_path):
    client = Client(space[0], verbose=False)
    for content, likely in (
        ("id;Text;label\n1;They knew;joy\n", "Text"),
        ("long description,tweet\nx and more and more,y\n", "tweet"),
        ("who,what she said,when\nme,They knew about the cracks,now\nyou,,later\n", "what she said"),
    ):
        (tmp_path / "in.csv").write_text(content)
        told = client.predict(handle_file(tmp_path / "in.csv"), api_name="/columns")
        assert told["likely"] == likely
        assert len(told["columns"]) == content.split("\n")[0].replace(";", ",").count(",") + 1
        assert told["rows"] == content.count("\n") - 1


def post(url: str, path: str, body: object) -> tuple[int, str]:
    """Status and answer of a call that no client would make."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}gradio_api/{path}", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_only_the_endpoints_can_be_called_and_a_malformed_call_is_not_logged(space, tmp_path):
    url, secret = space[0], "my most private text"
    known = json.load(urllib.request.urlopen(f"{url}gradio_api/info"))["named_endpoints"]
    assert set(known) == {"/classify", "/explain", "/columns", "/classify_batch"}
    for path in ("call/show", "call/classify_many", "call/lambda", "call/v2/classify", "run/explain", "api/classify"):
        assert post(url, path, {"data": [secret], "text": secret})[0] == 404, path
    fake = {"path": secret, "meta": {"_type": "gradio.FileData"}}
    paths = ("run/classify", "call/classify", "call/explain", "call/columns", "call/classify_batch", "queue/join")
    for path in paths:
        for body in (
            b"{" + secret.encode(),
            b"[" * 100_000,
            [secret],
            {"data": secret},
            {"text": secret},
            {"data": []},
            {"data": [secret, secret, secret], "fn_index": 0, "session_hash": "x"},
            {"data": [[secret]], "fn_index": 0, "session_hash": "x"},
            {"data": [fake], "fn_index": 0, "session_hash": "x"},
            {"data": [fake], "fn_index": 3, "session_hash": "x"},
            {"data": ["x" * 2**21]},
        ):
            assert post(url, path, body)[0] in (400, 413), (path, body)
    assert post(url, "run/classify", {"data": [secret], "fn_index": 3})[0] == 400  # nor another function by its number
    for index in (secret, -1, 99, None, [secret]):
        assert post(url, "queue/join", {"data": [secret], "fn_index": index, "session_hash": "x"})[0] == 400
    (tmp_path / "secret.csv").write_text("text\nnot yours\n")
    for file in ({"path": str(tmp_path / "secret.csv")}, {"path": "http://127.0.0.1/a.csv"}, {"path": "\0"}, None):
        assert post(url, "call/classify_batch", {"data": [file, ""]})[0] == 400
    log = (space[2] / "log").read_text()
    assert "Traceback" not in log
    assert secret not in log


def test_old_files_are_removed_also_of_uploads_that_were_broken_off(space):
    (folder,) = space[2].glob("emodeberta-space-*")
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\ntext\nleft behind\n'
    with socket.create_connection(space[0].split("/")[2].split(":")) as line:
        line.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 1000000\r\n\r\n" + head + b"more\n" * 50_000
        )
        time.sleep(1)
    left = [path for path in folder.rglob("*") if path.is_file() and b"left behind" in path.read_bytes()]
    assert left  # or this test shows nothing
    fresh = folder / "fresh" / "emotions.csv"
    fresh.parent.mkdir()
    fresh.write_text("text\n")
    old = time.time() - 3700
    for path in left:
        os.utime(path, (old, old))
    deadline = time.monotonic() + 60
    while any(path.exists() for path in left) and time.monotonic() < deadline:
        time.sleep(1)
    assert not any(path.exists() for path in left)
    assert fresh.exists()


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
    # The names of the results are free for a file's own columns.
    (tmp_path / "in.csv").write_bytes('\ufefftext;note;note_2;sure\r\n"No, ""never""\r\nagain";a, b;;\r\n'.encode())
    with open(client.predict(handle_file(tmp_path / "in.csv"), "text", api_name="/classify_batch"), newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("text", "note", "note_2", "sure")] == ['No, "never"\r\nagain', "a, b", "", ""]
    assert row["sure_2"] in ("yes", "no")
    assert [list(row)[-2:], row["note_3"], row["error"]] == [["note_3", "error"], "", ""]
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


def classified(page, text: str, click: bool = True) -> str:
    """What the answer says of a text."""
    with page.expect_response("**/gradio_api/run/classify"):
        page.get_by_label("Your text").fill(text)
        if click:
            page.get_by_role("button", name="Classify", exact=True).click()
    page.wait_for_function("() => !document.querySelector('#answer').hasAttribute('aria-busy')")
    return page.locator("#said").inner_text()


def test_one_text_in_the_browser(space, browser, local):
    page, wrong = opened(browser, space[0], 1440, dark=False)
    expect(page.locator("#said")).to_have_attribute("aria-live", "polite")  # before it changes, or nothing is read out
    # By keyboard alone.
    page.get_by_label("Your text").focus()
    page.keyboard.insert_text(TEXT)
    page.keyboard.press("Shift+Enter")
    (result,) = local([TEXT], return_members=True)
    page.locator(".headline").wait_for(timeout=60_000)
    expect(page.locator("#answer")).to_be_focused()
    order = sorted(result["scores"].items(), key=lambda entry: -entry[1])
    assert page.locator(".second").inner_text() == "most likely {} {:.0%}, then {} {:.0%}".format(*order[0], *order[1])
    page.get_by_label("Say “not sure” below").select_option("0")
    expect(page.locator(".headline")).to_have_text(order[0][0])
    told = page.locator(".stack").first.get_attribute("aria-label")
    assert told == ", ".join(f"{name} {score:.0%}" for name, score in order)
    members = page.locator("#members").inner_text()
    assert "members say otherwise" in members or "members agree" in members
    for name, said in result["members"].items():
        assert re.search(rf"{name}\s+{said['label']} {said['score']:.0%}", members)
    for _ in range(6):  # to "Why?"
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.parentElement.id") == "why":
            break
    page.keyboard.press("Enter")
    again = page.locator("#why .again")
    again.wait_for(timeout=60_000)
    assert again.inner_text() == TEXT
    explained = Client(space[0], verbose=False).predict(TEXT, api_name="/explain")
    assert explained["unit"] == "word"
    assert "".join(piece["text"] for piece in explained["pieces"]) == TEXT
    # Nothing is marked where nothing matters.
    weights = [piece["weight"] for piece in explained["pieces"]]
    assert page.locator("#why .for").count() == sum(weight >= 0.05 for weight in weights)
    assert page.locator("#why .against").count() == sum(weight <= -0.05 for weight in weights)
    page.get_by_text("All probabilities").click()
    assert page.locator("#all li").count() == len(order)

    assert "There is no text here." in classified(page, "  ")
    assert "This text has 100,000 characters; at most 20,000" in classified(page, "x" * 100_000)
    classified(page, NASTY)
    page.locator("#why .again").get_by_text("<script>document.title").wait_for(timeout=60_000)
    assert page.title() == "EmoDeBERTa"
    with page.expect_response("**/gradio_api/run/classify"):
        page.get_by_role("button", name="I am so happy today!").click()
    expect(page.get_by_label("Your text")).to_have_value("I am so happy today!")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("Your text")).to_be_focused()
    assert "The answer appears here" in page.locator("#said").inner_text()
    assert wrong == []
    page.close()


def typed(page, text: str) -> None:
    """Type by the page's own clock: a machine that is busy for half a second makes no pause between two keys."""
    page.get_by_label("Your text").focus()
    page.get_by_label("Your text").evaluate(
        """(box, text) => new Promise((done) => {
            const key = (place) => {
                if (place === text.length) return done();
                box.setRangeText(text[place], box.value.length, box.value.length, "end");
                box.dispatchEvent(new InputEvent("input", {bubbles: true}));
                setTimeout(key, 60, place + 1);
            };
            key(0);
        })""",
        text,
    )


def test_a_text_is_classified_while_it_is_typed_and_the_last_key_counts(space, browser):
    page, wrong = opened(browser, space[0], 390, dark=False)
    asked, dropped = [], []
    page.on("request", lambda it: asked.append(it.post_data_json["data"][0]) if it.url.endswith("/classify") else None)
    page.on("requestfailed", lambda it: dropped.append(it.url))
    typed(page, "They knew it")
    page.locator(".second").wait_for(timeout=60_000)
    assert asked == ["They knew it"]
    expect(page.get_by_label("Your text")).to_be_focused()

    held = []  # the answer to what was typed first never comes

    def hold(route):
        if len(asked) == 2:
            return held.append(route)
        return route.continue_()

    page.route("**/gradio_api/run/classify", hold)
    typed(page, " and")
    page.wait_for_timeout(600)
    typed(page, " lied.")
    page.wait_for_timeout(1500)
    assert asked[1:] == ["They knew it and", "They knew it and lied."]
    assert len(dropped) == 1
    page.locator("#why summary").click()
    page.locator("#why .again").wait_for(timeout=60_000)
    assert page.locator("#why .again").inner_text() == "They knew it and lied."
    assert wrong == []
    page.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("text", [TEXT, "They knew about it. I am sad! " * 60, "אני עצוב מאוד", " "])
def test_the_answer_is_inside_the_first_screen_of_a_phone(space, browser, text, dark):
    page, wrong = opened(browser, space[0], 390, dark)
    page.set_viewport_size({"width": 390, "height": 844})
    classified(page, text)
    box = page.locator("#said").bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 844
    assert page.evaluate("scrollY") == 0 or len(text) > 300
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert wrong == []
    page.close()


def test_a_text_that_the_model_does_not_know_is_said_to_be_one(space, browser):
    client = Client(space[0], verbose=False)
    for text, script in (
        ("אני עצוב מאוד", "(Hebrew script)"),
        ("أنا حزين جدا", "(Arabic script)"),
        ("Мне очень грустно сегодня", "(Cyrillic script)"),
        ("我今天很难过", "(Chinese script)"),
        ("나는 오늘 아주 슬프다", "(Hangul script)"),
        ("😡😡", "this text."),
    ):
        assert script in client.predict(text, api_name="/classify")["warning"]
    for text in (TEXT, "I am so sad 😢", "I", "It is 12:30, and they (all of them) left.", "ok lol", "Bravo, María!"):
        assert "warning" not in client.predict(text, api_name="/classify")
    answer = client.predict("Ich bin heute sehr traurig, und niemand hört mir zu.", api_name="/classify")
    assert "(it seems to be in another language)" in answer["warning"]
    assert answer["sure"] is False
    page, wrong = opened(browser, space[0], 390, dark=False)
    text = "אני עצוב מאוד, 12 ימים (באמת)."
    expect(page.locator("label[for=text]")).to_have_text("Your text, in English")
    page.get_by_label("Say “not sure” below").select_option("0")
    said = classified(page, text)
    assert "The model does not know most of this text (Hebrew script)." in said
    assert "Not sure" in said
    page.locator("#why summary").click()
    page.locator("#why .again").wait_for(timeout=60_000)
    for place in ("#text", "#why .again"):
        assert page.locator(place).evaluate("element => element.matches(':dir(rtl)')")
    assert page.locator("#why .again").inner_text() == text
    assert wrong == []
    page.close()


@pytest.fixture
def language(monkeypatch):
    """The module that tells whether a model knows a text's language."""
    monkeypatch.syspath_prepend(ROOT / "space")
    yield importlib.import_module("language")
    sys.modules.pop("language")


def test_texts_in_other_languages_are_found_and_short_english_ones_are_left_alone(language):
    tokenizer = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))

    def warned(texts: list[str], codes: tuple[str, ...] = ("en",)) -> list[str]:
        detector, encoded = language.Languages(codes), tokenizer(texts, return_offsets_mapping=True)
        read = zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [text for text, ids, spans in read if detector.warning(text, ids, spans, tokenizer.unk_token_id)]

    by_language = json.loads((ROOT / "tests" / "space" / "languages.json").read_text(encoding="utf-8"))
    english = by_language.pop("English")  # slang, typos, names and emoji, mostly of two to five words
    comments = pq.read_table(ROOT / "examples" / "emotions.parquet", filters=[("source", "=", "go_emotions")])
    comments = comments["text"].to_pylist()[::4]
    assert len(warned(english)) <= 0.04 * len(english)
    assert len(warned(comments)) <= 0.002 * len(comments)
    found = {name: len(warned(texts)) / len(texts) for name, texts in by_language.items()}
    assert min(found.values()) >= 0.6, found  # the rest has one or two words, or is written like English
    assert sum(found.values()) / len(found) >= 0.85, found
    for codes in ((), ("en", "de"), ("multilingual",)):  # nothing known, known, and not to be judged
        assert warned([text for text in by_language["German"] if text.isascii()], codes) == []


@pytest.mark.parametrize(
    ("head", "codes"),
    [
        ("language: en", ["en"]),
        ("language: [en-GB, De]", ["en", "de"]),
        ("language: multilingual", []),
        ("language: no", []),  # YAML's false
        ("license: mit", []),
        ("language: [", []),
        (None, []),
    ],
)
def test_the_languages_of_a_model_are_its_cards(monkeypatch, tmp_path, head, codes):
    monkeypatch.syspath_prepend(ROOT / "space")
    if head is not None:
        (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    assert importlib.import_module("classifier").languages_of(str(tmp_path), None) == codes
    for name in ("classifier", "language", "precision"):
        sys.modules.pop(name)


def test_a_long_text_is_explained_by_its_sentences(space, browser):
    text = "We moved here in spring, and I loved it.\nThen the letters began! “Pay, or leave.” I am afraid; " * 25
    explained = Client(space[0], verbose=False).predict(text, api_name="/explain")
    assert explained["unit"] == "sentence"
    assert "".join(piece["text"] for piece in explained["pieces"]) == text
    assert [piece["text"].strip() for piece in explained["pieces"]][1:4] == [
        "Then the letters began!",
        "“Pay, or leave.”",
        "I am afraid; We moved here in spring, and I loved it.",
    ]
    page, wrong = opened(browser, space[0], 390, dark=False)
    page.get_by_label("Say “not sure” below").select_option("0")
    classified(page, text)
    page.locator("#why summary").click()
    page.locator("#why .long").wait_for(timeout=60_000)
    assert page.locator("#why .stack span").count() == len(explained["pieces"])
    assert page.locator("#why .for").count() == len(explained["pieces"])
    assert wrong == []
    page.close()


@pytest.mark.parametrize(
    "text", ["!" * 20_000, "a" * 20_000, "a. " * 6_600, "\n" * 19_000 + "a", "。" * 20_000, "“" * 19_999 + "."]
)
def test_the_time_for_an_explanation_does_not_grow_with_the_text(space, text):
    start = time.monotonic()
    explained = Client(space[0], verbose=False).predict(text, api_name="/explain")
    assert "".join(piece["text"] for piece in explained["pieces"]) == text
    assert time.monotonic() - start < 60


def test_the_calls_of_the_api_tab_work_as_they_are_copied(space, browser, tmp_path):
    page, wrong = opened(browser, space[0], 390, dark=False)
    page.get_by_role("tab", name="One text").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="API")).to_be_focused()
    (tmp_path / "comments.csv").write_text("text\nThey knew it.\n")
    code = page.locator("#python").inner_text().replace("client.predict", "print(client.predict").splitlines()
    code = "\n".join(line.partition("  #")[0] + (")" if "predict" in line else "") for line in code)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "'scores': {" in done.stdout
    assert done.stdout.rstrip().endswith("emotions.csv")
    if shutil.which("curl"):
        shell = ["bash", "-c", page.locator("#shell").inner_text()]
        told = subprocess.run(shell, check=True, capture_output=True, text=True).stdout
        assert json.loads(told)["data"][0]["label"]
    assert wrong == []
    page.close()


def test_notes_of_wrong_answers_are_downloaded_and_never_sent(space, browser):
    page, wrong = opened(browser, space[0], 390, dark=True)
    classified(page, '=SUM(A1), "they" said')
    page.get_by_text("Is this wrong?").click()
    right = page.get_by_label("The right label").locator("option").nth(1).inner_text()
    page.get_by_label("The right label").select_option(right)
    sent = []
    page.on("request", lambda it: sent.append(it.url) if not it.url.startswith("blob:") else None)
    page.get_by_role("button", name="Note it").click()
    page.get_by_text(f"Noted: {right}. 1 note so far.").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download my notes").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == """'=SUM(A1), "they" said"""
    assert row["right_label"] == right
    assert sent == []
    assert wrong == []
    page.close()


def test_a_file_in_the_browser_on_a_dark_phone(space, browser, tmp_path, essays):
    page, wrong = opened(browser, space[0], 390, dark=True)
    texts = [*essays[:196], "=1+1 is a feeling", "", "He said:\n“no”", NASTY]
    with open(tmp_path / "essays.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "what, exactly"], *([index, text] for index, text in enumerate(texts))])
    page.get_by_role("tab", name="Many texts").click()
    page.locator("#file").set_input_files(tmp_path / "essays.csv")
    page.get_by_role("button", name="Classify 200 rows").wait_for()
    assert page.get_by_label("Column of the texts").input_value() == "what, exactly"
    page.get_by_role("button", name="Classify 200 rows").click()
    page.locator("#results tbody tr").first.wait_for(timeout=120_000)
    expect(page.locator("#summary")).to_be_focused()
    summary = page.locator("#summary").inner_text()
    assert summary.startswith("199 of 200 rows classified; ")
    assert "; 1 could not be classified" in summary
    shares = [int(share.rstrip("%")) for share in page.locator("#shares li > :last-child").all_inner_texts()]
    assert abs(sum(shares) - 100) <= len(shares)
    page.locator("#results thead").get_by_text("Label").wait_for()
    for cell in page.locator("#results tbody tr").first.locator("td").all()[:2]:  # label and probability are seen
        box = cell.bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 390
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the results").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["what, exactly"] for row in read] == [*essays[:196], "'=1+1 is a feeling", *texts[197:]]
    page.get_by_role("button", name="Probability").click()
    seen = [int(cell.rstrip("%")) for cell in page.locator("#results td:nth-child(2)").all_inner_texts()]
    assert seen == sorted(seen, reverse=True)
    page.get_by_role("button", name="Show 100 more").click()
    assert page.locator("#results tbody tr").count() == 200
    page.get_by_role("button", name="Label").click()
    page.get_by_label("Show only “not sure” and errors").check()
    unsure = sum(row["sure"] != "yes" for row in read)
    assert page.locator("#results tbody tr").count() == min(unsure, 200)
    assert page.locator("#results tbody").get_by_text("There is no text here").count() == 1
    # What was there is not the result of a file that cannot be read, and the error stays until the next try.
    (tmp_path / "bad.csv").write_text("a,a\n1,2\n")
    page.locator("#file").set_input_files(tmp_path / "bad.csv")
    page.locator("#trouble").get_by_text("names 'a' twice").wait_for()
    expect(page.locator("#results")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.title() == "EmoDeBERTa"
    assert wrong == []
    page.close()


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(space, browser, tmp_path, dark):
    page, wrong = opened(browser, space[0], 390, dark)

    def check(state: str) -> None:
        page.wait_for_timeout(100)
        found = Axe().run(page).response["violations"]
        serious = [
            (state, each["id"], node["html"])
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
        assert serious == []

    check("empty")
    page.get_by_label("Say “not sure” below").select_option("0")
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    for text in (TEXT, "They knew about it. I am sad! " * 60, "אני עצוב מאוד"):
        classified(page, text)
        page.locator("#why .again").wait_for(timeout=60_000)
        check(text[:20])
    classified(page, " ")
    check("error")
    page.get_by_role("tab", name="Many texts").click()
    (tmp_path / "in.csv").write_text(f"text\n{TEXT}\n\u200b\n" + f"{TEXT} {TEXT}\n")
    page.locator("#file").set_input_files(tmp_path / "in.csv")
    page.get_by_role("button", name="Classify 3 rows").click()
    page.locator("#results tbody tr").first.wait_for(timeout=60_000)
    check("many")
    page.get_by_role("tab", name="API").click()
    check("api")
    assert wrong == []
    page.close()


def test_the_palette_is_one_and_is_readable_by_everybody():
    file = ROOT / "space" / "palette.json"
    palette = json.loads(file.read_text(encoding="utf-8"))
    assert palette["plots"] == COLORS
    emotions = palette["emotions"]

    def linear(color: str) -> np.ndarray:
        value = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)

    def contrast(one: str, other: str) -> float:
        low, high = sorted(linear(color) @ [0.2126, 0.7152, 0.0722] for color in (one, other))
        return (high + 0.05) / (low + 0.05)

    for theme, grounds in (("light", ("#ffffff", "#f6f7f9")), ("dark", ("#15181e", "#1e222a"))):
        for ground in grounds:
            assert f"{ground}" in (ROOT / "space" / "page" / "page.css").read_text()
            assert min(contrast(look[theme]["ink"], ground) for look in emotions.values()) >= 4.5
        # Machado et al. 2009, of full strength; distances in OKLab, where 2 is just seen.
        for sees in (
            np.eye(3),
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ):
            seen = [np.clip(sees @ linear(look[theme]["fill"]), 0, 1) for look in emotions.values()]
            lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
            lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
            points = [lab @ np.cbrt(lms @ color) for color in seen]
            assert min(100 * np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)) > 10
    assert len({look["face"] for look in emotions.values()}) == len(emotions)
    assert set(palette["related"].values()) <= set(emotions)


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


def test_the_space_asks_for_the_versions_that_are_tested():
    pinned = set((ROOT / "constraints.txt").read_text().splitlines())
    asked = [line for line in (ROOT / "space" / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    asked.append("gradio==" + re.search(r"^sdk_version: (.+)$", (ROOT / "space" / "README.md").read_text(), re.M)[1])
    assert set(asked) <= pinned


def test_a_space_with_a_model_of_others_says_what_it_wants(tokenizer, monkeypatch, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    DebertaV2ForSequenceClassification(DebertaV2Config(**shape, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "space")
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ValueError, match="it lacks the code of this project; want a model of run_classify"):
            importlib.import_module("classifier").Classifier(str(tmp_path))
    finally:
        torch.set_num_threads(threads)
        for name in ("classifier", "language", "precision"):
            sys.modules.pop(name, None)


def test_a_space_without_its_model_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "space" / "app.py"], cwd=tmp_path, env=os.environ | {"EMODEBERTA_MODEL": "/nowhere"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode
    assert done.stderr.strip().splitlines()[-1].startswith("error: /nowhere: not a model to load")
