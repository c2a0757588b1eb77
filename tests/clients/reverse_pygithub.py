"""PyGithub with the tap as its base_url, as with github-mirror."""
import sys

from github import Auth, Github, UnknownObjectException

fast = {"seconds_between_requests": 0, "seconds_between_writes": 0, "retry": None}
with Github(base_url=sys.argv[1], auth=Auth.Token("ghp_dummy"), **fast) as g:
    repo = g.get_repo("o/r")
    print("repo", repo.full_name)
    issues = repo.get_issues(state="open")
    print("issues", issues.totalCount, len(list(issues)))
    print("moved", g.get_repo("o/moved").full_name)
    try:
        repo.get_contents("nope.txt")
    except UnknownObjectException as e:
        print("missing", e.status)
    print("created", repo.create_issue(title="x").number)
