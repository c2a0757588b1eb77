"""PyGithub: objects, update(), listings and their total, what is missing, an App's installation."""
import pathlib
import sys

from github import Auth, Github, GithubIntegration, UnknownObjectException

fast = {"seconds_between_requests": 0, "seconds_between_writes": 0, "retry": None}
with Github(auth=Auth.Token("ghp_dummy"), **fast) as g:
    repo = g.get_repo("o/r")
    print("repo", repo.full_name, repo.private)
    print("update", repo.update())
    issues = repo.get_issues(state="open")
    print("issues", issues.totalCount, len(list(issues)))
    try:
        repo.get_contents("nope.txt")
    except UnknownObjectException as e:
        print("missing", e.status)
    print("contents", repo.get_contents("README.md", ref="main").decoded_content.decode().strip())
    print("created", repo.create_issue(title="x").number)
app = Auth.AppAuth(1, pathlib.Path(sys.argv[1]).read_text())
installed = GithubIntegration(auth=app, **fast).get_github_for_installation(7)
print("installation", installed.get_repo("o/r").full_name)
