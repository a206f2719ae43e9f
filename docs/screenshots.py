"""Pictures of the demo for the README: python docs/screenshots.py outputs/quickstart"""

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import sync_playwright

from benchmarks.bench_space import serve

TEXT = (
    "The landlord promised to mend the heating in October. It is January, my children sleep in their coats, and now he "
    "wants more rent. I am furious."
)


def main() -> None:
    target = Path(__file__).with_name("space")
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryFile("w") as log, sync_playwright() as playwright:
        process, url = serve(Path(sys.argv[1]).resolve(), log)
        try:
            found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
            browser = playwright.chromium.launch(executable_path=found)
            for width, device in ((1280, "desktop"), (390, "phone")):
                for scheme in ("light", "dark"):
                    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
                    page.goto(url)
                    page.get_by_label("Your text").fill(TEXT)
                    page.get_by_role("button", name="Classify", exact=True).click()
                    page.locator("#why p").wait_for(timeout=120_000)
                    page.wait_for_timeout(500)
                    page.screenshot(path=target / f"{device}-{scheme}.png", full_page=True)
            browser.close()
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
