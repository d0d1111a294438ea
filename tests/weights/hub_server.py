"""A small server for the part of the Hugging Face Hub's protocol that uploading and downloading a file needs."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>\w+)(/(?P<revision>[^/]+))?)?")
TOKEN = "hf_writer"  # the only one that the server accepts


class Hub(ThreadingHTTPServer):
    """`repos` is {repository: {branch or commit: {file: content}}}; some owners' repositories refuse access."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.messages = {}, set(), []
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        revisions = self.repos.setdefault(repo, {})
        files = revisions.get(branch, {}) | files
        commit = hashlib.sha1(repr(files).encode()).hexdigest()
        revisions[branch] = revisions[commit] = files
        return commit

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments) -> None: ...

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        match = RESOLVE.fullmatch(path) or API.fullmatch(path)
        if match is None:
            return self.answer(404)
        asked = {key: unquote(value or "") for key, value in match.groupdict().items()}
        repo, revision, what = asked["repo"], asked["revision"], asked.get("what")
        known, revisions = self.headers["Authorization"] == f"Bearer {TOKEN}", self.server.repos.get(repo)
        if revisions is None or (repo in self.server.private and not known):
            self.answer(404 if known else 401, X_Error_Code="RepoNotFound")
        elif repo.startswith("gated/"):
            self.answer(403, X_Error_Code="GatedRepo")
        elif repo.startswith("disabled/"):
            self.answer(403, X_Error_Message="The owner is away")
        elif what == "refs":
            names = [name for name in revisions if len(name) < 40]
            refs = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": ""} for name in names]
            self.answer(200, {"branches": refs, "tags": [], "converts": []})
        elif revision not in revisions:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif what == "tree":
            files = revisions[revision]
            self.answer(200, [{"type": "file", "path": f, "size": len(files[f]), "oid": ""} for f in files])
        elif asked["file"] not in revisions[revision]:
            self.answer(404, X_Error_Code="EntryNotFound")
        else:
            files = revisions[revision]
            commit = next(name for name in revisions if len(name) == 40 and revisions[name] is files)
            content = files[asked["file"]]
            self.answer(200, content, ETag=hashlib.sha1(content).hexdigest(), X_Repo_Commit=commit)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        lines = [json.loads(line) for line in self.rfile.read(int(self.headers["Content-Length"])).splitlines()]
        created = f"{lines[0].get('organization')}/{lines[0].get('name')}"
        asked = {"repo": created} if self.path == "/api/repos/create" else API.fullmatch(self.path).groupdict()
        repo, what, hub = asked["repo"], asked.get("what"), self.server
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or repo.startswith("others/"):
            self.answer(403 if self.headers["Authorization"] else 401)
        elif what is None:
            is_new = repo not in hub.repos
            if is_new:
                hub.commit(repo, "main", {})
            if lines[0].get("private") or lines[0].get("visibility") == "private":  # version 1, or 2
                hub.private.add(repo)
            self.answer(200 if is_new else 409, {"url": f"{hub.endpoint}/{repo}"})
        elif what == "branch":
            is_new = asked["revision"] not in hub.repos[repo]
            hub.repos[repo].setdefault(asked["revision"], hub.repos[repo]["main"])
            self.answer(200 if is_new else 409, {})
        elif what == "preupload":
            names = [file["path"] for file in lines[0]["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer(200, {"files": files})
        else:
            header, *files = [line["value"] for line in lines]
            hub.messages.append(header["summary"])
            files = {file["path"]: base64.b64decode(file["content"]) for file in files}
            self.answer(
                200, {"commitOid": hub.commit(repo, asked["revision"], files), "commitUrl": f"{hub.endpoint}/{repo}"}
            )
