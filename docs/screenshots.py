"""Pictures of the demo for the README and the guide: python docs/screenshots.py outputs/quickstart short

Without names of states, all of them. Each is shown on a phone and a desk, light and dark, in
docs/pictures/<state>-<phone or desktop>-<light or dark>.png.
"""

import csv
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Page, sync_playwright

from benchmarks.bench_space import serve

SHORT = (
    "The landlord promised to mend the heating in October. It is January, my children sleep in their coats, and now he "
    "wants more rent. I am furious."
)
LONG = f"""\
We moved here in spring, the house was full of light, and I loved every morning of it. Then the letters began. {SHORT} I
lie awake and I am afraid of what comes next. My mother called and cried with me. The office opens at nine on Tuesday.
Yesterday a neighbour gave us her heater. I did not see that coming at all, and I was so happy! Who would do that for
people they hardly know? Today the landlord stood at the door and laughed at the children's coats. It made me sick. \
""".replace("\n", " ")
TEXTS = {
    "empty": None,
    "short": SHORT,
    "long": LONG * 2,
    "hebrew": "אני עצוב מאוד, 12 ימים בלי אף אחד (באמת).",
    "german": "Ich bin heute sehr traurig, und niemand hört mir zu.",
    "emoji": "😡😡😡",
    "wrong": "The bridge reopens on Tuesday at nine.",
    "not-sure": "Well, there it was, and they said what they said about it.",
    "error": "x" * 20_001,
}
ROWS = [SHORT, "I am so happy today!", "", TEXTS["not-sure"], "=1+1 is what he said, and I hate it.", TEXTS["hebrew"]]


def one_text(page: Page, text: str | None) -> None:
    if text is None:
        return
    page.get_by_label("Your text").fill(text)
    page.get_by_role("button", name="Classify", exact=True).click()
    page.locator("#said .headline, #said .error").wait_for(timeout=120_000)
    if text in (SHORT, TEXTS["long"]):
        page.get_by_text("Why?").click()
        page.locator("#why .again").wait_for(timeout=120_000)
    if text == TEXTS["wrong"]:
        page.get_by_text("Is this wrong?").click()
        page.get_by_label("The right label").select_option(index=1)
        page.get_by_role("button", name="Note it").click()


def many_texts(page: Page, folder: Path) -> None:
    with open(folder / "comments.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["day", "comment"], *(["Monday", text] for text in ROWS)])
    page.get_by_role("tab", name="Many texts").click()
    page.locator("#file").set_input_files(folder / "comments.csv")
    page.get_by_role("button", name="Classify 6 rows").click()
    page.locator("#results tbody tr").first.wait_for(timeout=120_000)


def calls(page: Page, folder: Path) -> None:
    page.get_by_role("tab", name="API").click()


OTHER_TABS = {"batch": many_texts, "api": calls}


def main() -> None:
    states = sys.argv[2:] or [*TEXTS, *OTHER_TABS]
    target = Path(__file__).with_name("pictures")
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        with open(Path(name, "log"), "w") as log:
            process, url = serve(Path(sys.argv[1]).resolve(), log)
        try:
            found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
            browser = playwright.chromium.launch(executable_path=found)
            for width, device in ((1440, "desktop"), (390, "phone")):
                for scheme in ("light", "dark"):
                    for state in states:
                        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
                        page.goto(url)
                        OTHER_TABS[state](page, Path(name)) if state in OTHER_TABS else one_text(page, TEXTS[state])
                        page.screenshot(path=target / f"{state}-{device}-{scheme}.png", full_page=True)
                        page.close()
            browser.close()
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
