"""A Hub of one's own on the loopback, for the real `huggingface_hub` client: repositories in memory, faults on demand.

Speaks what the client of 2.4 asks for to create, upload (git blobs and LFS), commit, tag, list and download models and
Spaces. Whoever has `TOKEN` may do everything, others read what is public.

As a script it is a user's process: it runs the Python that comes as a JSON line on standard input, and answers with a
JSON line. One start of Python serves many requests. The environment (HF_ENDPOINT, HF_HOME, HF_TOKEN) is the starter's.
"""

import base64
import contextlib
import hashlib
import io
import json
import re
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
KINDS = {"models": "", "spaces": "spaces/"}


@dataclass
class File:
    """Of a commit. Content that went through LFS is found by its SHA-256, as on the Hub."""

    oid: str
    size: int
    lfs: bool
    content: bytes = field(repr=False)


@dataclass
class Repo:
    private: bool
    details: dict
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)

    def commit(self, branch: str, files: dict[str, File]) -> str:
        said = json.dumps([branch, len(self.commits), sorted((path, file.oid) for path, file in files.items())])
        sha = hashlib.sha1(said.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What the next `times` requests get whose method and path are like this: a status, or a cut connection, before
    or after the request was obeyed."""

    method: str
    path: str
    what: int | str
    times: int = 1
    retry_after: str = "0"


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url`. `requests` has the method and path of all that came."""

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.elsewhere = f"http://localhost:{self._server.server_port}"  # the client tells a file server by its name

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Quiet."""

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command in ("POST", "PUT") else b""
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = self.hub.fault_for(self.command, path)
            if fault and fault.what == "cut":
                return self._cut()
            if fault and fault.what != "cut after":
                page = b"<html>not today</html>"  # what stands before the Hub speaks no JSON
                content = page if fault.what == 503 else {"error": f"injected {fault.what}"}
                return self._answer(fault.what, content, {"Retry-After": fault.retry_after})
            self._silent = fault is not None  # obey, then cut
            for pattern, routes in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in routes:
                    routes[self.command](self, *found.groups(), body=body, query=parse_qs(url.query))
                    break
            else:
                self._answer(404, {"error": f"no such path here: {self.command} {path}"})
        if self._silent:
            self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "_silent", False):
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        sent = {"Content-Length": str(len(data)), "X-Request-Id": "Root=1-loopback", **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, what: str, status: int = 404) -> None:
        self._answer(status, {"error": what}, {"X-Error-Code": what})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, kind: str, name: str, write: bool = False) -> Repo | None:
        """The repository, or an answer that there is none: a private one is not admitted to, as on the Hub."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self._known):
            self._missing("RepoNotFound", 404 if self._known else 401)
            return None
        if write and not self._known:
            self._answer(401, {"error": "Invalid credentials"})
            return None
        return repo

    # ---- Accounts and repositories ---------------------------------------------------------------------------------

    def whoami(self, **_) -> None:
        if not self._known:
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        self._answer(200, {"type": "user", "name": "owner", "orgs": [], "auth": {"type": "access_token"}})

    def create(self, *, body: bytes, **_) -> None:
        if not self._known:
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        wanted = json.loads(body)
        kind, name = f"{wanted.get('type', 'model')}s", f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        url = {"url": f"{self.hub.url}/{KINDS[kind]}{name}", "name": name, "id": name}
        if (kind, name) in self.hub.repos:
            return self._answer(409, url | {"error": "You already created this repo"})
        repo = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")), wanted)
        repo.variables = {entry["key"]: entry["value"] for entry in wanted.get("variables", [])}
        repo.commit("main", {})
        self.hub.repos[kind, name] = repo
        self._answer(200, url)

    def validate_yaml(self, *, body: bytes, **_) -> None:
        base = re.search(r"^base_model: (.*)$", json.loads(body)["content"], re.MULTILINE)
        valid = base is None or re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", base.group(1))
        errors = [] if valid else [{"message": f'"base_model" with value "{base.group(1)}" is not valid'}]
        self._answer(200 if valid else 400, {"errors": errors, "warnings": []})

    def variables(self, name: str, *, body: bytes, **_) -> None:
        if repo := self._repo("spaces", name, write=True):
            wanted = json.loads(body)
            repo.variables[wanted["key"]] = wanted["value"]
            self._answer(200, {key: {"value": value, "updatedAt": None} for key, value in repo.variables.items()})

    def branch(self, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
        if repo := self._repo(kind, name, write=True):
            if revision in repo.refs:
                return self._answer(409, {"error": "Reference already exists"})
            start = json.loads(body or b"{}").get("startingPoint") or "main"
            repo.refs[revision] = repo.resolve(start)
            self._answer(201, {})

    def tag(self, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
        if repo := self._repo(kind, name, write=True):
            tag, sha = json.loads(body)["tag"], repo.resolve(revision)
            if repo.refs.get(tag, sha) != sha:
                return self._answer(409, {"error": "Tag reference exists already"})
            repo.refs[tag] = sha
            repo.tags.add(tag)
            self._answer(201, {})

    # ---- Upload ----------------------------------------------------------------------------------------------------

    def preupload(self, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
        if (repo := self._repo(kind, name, write=True)) is None:
            return
        if (sha := repo.resolve(revision)) is None:
            return self._missing("RevisionNotFound")
        files = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith((".safetensors", ".png", ".onnx")) or file["size"] > 10_000_000
            there = repo.commits[sha].get(file["path"])
            entry = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            files.append(entry | ({"oid": there.oid} if there else {}))
        self._answer(200, {"files": files})

    def batch(self, name: str, *, body: bytes, **_) -> None:
        objects = []
        for entry in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}}}
            objects.append(entry | ({} if entry["oid"] in self.hub.blobs else {"actions": action}))
        self._answer(200, {"transfer": "basic", "objects": objects})

    def put_blob(self, oid: str, *, body: bytes, **_) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer(400, {"error": "content and oid differ"})
        self.hub.blobs[oid] = body
        self._answer(200, {})

    def commit(self, kind: str, name: str, revision: str, *, body: bytes, **_) -> None:
        if (repo := self._repo(kind, name, write=True)) is None:
            return
        files = dict(repo.commits[repo.refs[revision]])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                files[value["path"]] = File(oid, len(content), False, content)
            elif entry["key"] == "lfsFile":
                content = self.hub.blobs[value["oid"]]  # a commit of what was never uploaded fails, as it should
                files[value["path"]] = File(value["oid"], len(content), True, content)
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(revision, files)
        url = f"{self.hub.url}/{KINDS[kind]}{name}/commit/{sha}"
        self._answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # ---- Download --------------------------------------------------------------------------------------------------

    def info(self, kind: str, name: str, revision: str | None = None, **_) -> None:
        if (repo := self._repo(kind, name)) is None:
            return
        if (sha := repo.resolve(revision or "main")) is None:
            return self._missing("RevisionNotFound")
        files = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        self._answer(200, {"id": name, "sha": sha, "private": repo.private, "siblings": files, "tags": []})

    def refs(self, kind: str, name: str, **_) -> None:
        if repo := self._repo(kind, name):
            every = [{"name": n, "ref": n, "targetCommit": sha} for n, sha in repo.refs.items()]
            branches = [ref for ref in every if ref["name"] not in repo.tags]
            tags = [ref for ref in every if ref["name"] in repo.tags]
            self._answer(200, {"branches": branches, "converts": [], "tags": tags})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None, *, query: dict, **_) -> None:
        if (repo := self._repo(kind, name)) is None:
            return
        if (sha := repo.resolve(revision)) is None:
            return self._missing("RevisionNotFound")
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for path, file in sorted(repo.commits[sha].items()):
            if not path.startswith(prefix):
                continue
            below = path[len(prefix) :].split("/")
            folders |= {prefix + "/".join(below[:depth]) for depth in range(1, len(below))}
            if len(below) == 1 or query.get("recursive", ["false"])[0].lower() in ("true", "1"):
                entry = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
                lfs = {"lfs": {"oid": file.oid, "size": file.size, "pointerSize": 134}} if file.lfs else {}
                entries.append(entry | lfs)
        if folder and not entries:
            return self._missing("EntryNotFound")
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        self._answer(200, entries)

    def resolve(self, prefix: str | None, name: str, revision: str, path: str, **_) -> None:
        if (repo := self._repo("spaces" if prefix else "models", name)) is None:
            return
        if (sha := repo.resolve(revision)) is None:
            return self._missing("RevisionNotFound")
        if (file := repo.commits[sha].get(path)) is None:
            return self._answer(
                404, {"error": "EntryNotFound"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'}
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            return self._answer(302, b"", headers | linked | {"Location": f"{self.hub.elsewhere}/lfs/{file.oid}"})
        self._answer(200, file.content, headers)

    def get_blob(self, oid: str, **_) -> None:
        self._answer(200, self.hub.blobs[oid], {"ETag": f'"{oid}"'})


_KIND, _NAME = "(models|spaces)", "([^/]+/[^/]+)"
_ROUTES = [
    (r"/api/whoami-v2", {"GET": _Handler.whoami}),
    (r"/api/repos/create", {"POST": _Handler.create}),
    (r"/api/validate-yaml", {"POST": _Handler.validate_yaml}),
    (rf"/api/spaces/{_NAME}/variables", {"POST": _Handler.variables}),
    (rf"/api/{_KIND}/{_NAME}/branch/(.+)", {"POST": _Handler.branch}),
    (rf"/api/{_KIND}/{_NAME}/tag/(.+)", {"POST": _Handler.tag}),
    (rf"/api/{_KIND}/{_NAME}/preupload/(.+)", {"POST": _Handler.preupload}),
    (rf"/api/{_KIND}/{_NAME}/commit/(.+)", {"POST": _Handler.commit}),
    (rf"/api/{_KIND}/{_NAME}/refs", {"GET": _Handler.refs}),
    (rf"/api/{_KIND}/{_NAME}/tree/([^/]+)(?:/(.+))?", {"GET": _Handler.tree}),
    (rf"/api/{_KIND}/{_NAME}(?:/revision/(.+))?", {"GET": _Handler.info}),
    (rf"/(?:spaces/)?{_NAME}\.git/info/lfs/objects/batch", {"POST": _Handler.batch}),
    (r"/lfs/([0-9a-f]{64})", {"PUT": _Handler.put_blob, "GET": _Handler.get_blob, "HEAD": _Handler.get_blob}),
    (rf"/(spaces/)?{_NAME}/resolve/([^/]+)/(.+)", {"GET": _Handler.resolve, "HEAD": _Handler.resolve}),
]


def do_as_told() -> None:
    """Run what comes on standard input until it ends."""
    names: dict = {}
    for line in sys.stdin:
        said, error = io.StringIO(), None
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            try:
                exec(json.loads(line), names)
            except BaseException as problem:
                error = f"{type(problem).__name__}: {problem}"
                trace = traceback.format_exc()
        answer = {"said": said.getvalue(), "error": error, "trace": trace if error else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    do_as_told()
