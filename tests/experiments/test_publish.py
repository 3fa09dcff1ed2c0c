"""What a results page says about the code that made it."""

import subprocess
from pathlib import Path

from audiorec.experiments.publish import commit


def test_a_commit_is_marked_where_code_differs_and_not_where_pages_do(tmp_path: Path):
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True)

    assert commit(tmp_path) == "unknown"
    code, page = tmp_path / "room" / "code.py", tmp_path / "docs" / "run.md"
    for file in (code, page):
        file.parent.mkdir()
        file.write_text("as committed\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")

    clean = commit(code.parent)
    assert len(clean) >= 7 and not clean.endswith("-dirty")
    page.write_text("made anew\n")
    assert commit(code.parent) == clean
    code.write_text("changed\n")
    assert commit(code.parent) == f"{clean}-dirty"
