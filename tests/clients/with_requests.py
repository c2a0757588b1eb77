"""requests: a session, a redirect, a 404, a POST."""
import requests

session = requests.Session()
session.headers["Authorization"] = "token t"
for path in ("/repos/o/r", "/repos/o/r", "/repos/o/moved", "/repos/o/none"):
    reply = session.get("https://api.github.com" + path, timeout=10)
    print(path, reply.status_code, reply.json().get("full_name"))
print("post", session.post("https://api.github.com/repos/o/r/issues", json={"title": "x"}, timeout=10).status_code)
