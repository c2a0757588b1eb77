"""ogr, as Packit uses it: an App's key, a new token for each project object."""
import pathlib
import sys

from ogr import GithubService
from ogr.abstract import CommitStatus, PRStatus

for _ in range(2):
    service = GithubService(github_app_id="1", github_app_private_key=pathlib.Path(sys.argv[1]).read_text(), max_retries=0)
    project = service.get_project(namespace="o", repo="r")
    print("private", project.is_private())
    print("file", project.get_file_content("README.md", "main").strip())
    try:
        project.get_file_content("nope.txt", "main")
    except FileNotFoundError:
        print("missing")
    print("can merge", project.can_merge_pr("u"))
    flag = project.set_commit_status("a" * 40, CommitStatus.success, "https://x.example/", "description", "ctx")
    print("status", flag.state.name)
    print("pull requests", len(project.get_pr_list(PRStatus.open)))
