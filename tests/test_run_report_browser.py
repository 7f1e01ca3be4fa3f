"""The page about a run as a browser sees it."""

import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.running import train
from tests.test_report import Page
from tests.test_run_report import evaluate, pairs_image, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Canary(http.server.BaseHTTPRequestHandler):
    """Notes every request."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def canary():
    server = http.server.HTTPServer(("127.0.0.1", 0), Canary)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def browse(page: Path, folder: Path, *arguments: str) -> str:
    """Headless Chromium with a profile of its own. Returns what it prints."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
               f"--user-data-dir={folder / 'profile'}", *arguments, page.resolve().as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
def test_in_a_browser(shard_folder, tmp_path, canary):
    """The DOM after parsing, every image decoded onto the screen, and no request for what a caption asks for."""
    run = tmp_path / "tiny"
    train(shard_folder, run, iters=4, sample_every=2, ckpt_every=2, score="swd", score_count=16)
    address = f"http://127.0.0.1:{canary.server_address[1]}"
    caption = f'<img src="{address}/caption"><script>document.title="taken"; fetch("{address}/script")</script>'
    (run / "sample_captions.txt").write_text(f"{caption}\nplain\n")
    rows = [{"sample": 1, "caption": caption, "training": 2, "training_caption": "b", "distance": 0.5}]
    path = evaluate(run, 4, nearest=rows, nearest_image="pairs.png", notes=[caption],
                    prompts=[{"caption": caption, "count": 1, "clip_score": 2.0}])  # fmt: skip
    evaluate(run, 2)
    pairs_image(path.with_name("pairs.png"), 1)
    write(run)
    dom = browse(run / "report.html", tmp_path, "--dump-dom")
    parsed = Page(dom)
    for section in ("Samples over the training", "Scores", "Prompts", "Nearest training images",
                    "Curves of the training", "Health", "Options"):  # fmt: skip
        assert f"<h2>{section}</h2>" in dom
    assert "<title>tiny: run</title>" in dom and "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.shown.count(caption) >= 4
    sources = [attrs["src"] for tag, attrs in parsed.tags if tag == "img"]
    assert len(sources) > 10 and all(source.startswith("data:") for source in sources)

    for width in (1200, 400):
        shot = tmp_path / f"{width}.png"
        browse(run / "report.html", tmp_path, f"--window-size={width},9000", f"--screenshot={shot}")
        seen = Image.open(shot).convert("RGB")
        colours = seen.getcolors(2**24)
        magenta = sum(count for count, (red, green, blue) in colours if min(red, blue, 255 - green) > 250)
        assert seen.width == width and magenta > 60 * 60  # the training image of the pair, enlarged
    assert canary.asked == []
    (run / "control.html").write_text(caption)
    browse(run / "control.html", tmp_path, "--dump-dom")
    assert "/caption" in canary.asked
