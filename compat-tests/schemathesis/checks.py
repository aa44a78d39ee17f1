"""What every answer must be, whatever was asked: a check and hooks for schemathesis.

- No 5xx, but for what Vault itself answers so: 501 where the server says that it does not have an endpoint, and 500 for the
  mistakes of callers that the recorded conversations or Vault's source show as 500. "internal error" is never one of those.
- An error is a JSON object with `errors`, as Vault's clients read it; a 404 may be a whole answer (deleted KV versions).
- What says that it is JSON is JSON.

A request that hangs or is cut off is a failure by itself (--request-timeout).
"""
import glob, json, os, re

import schemathesis

CASES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "conformance", "cases")

# Not in the recorded conversations word by word.
FIVE_HUNDREDS = [
    r"1 error occurred:\n\t\* failed to parse batch input: .*\n\n",  # conformance/NOTES.md, Transit 10
    r"1 error occurred:\n\t\* for (source|destination) key: refusing to use soft-deleted key\n\n",
    r"invalid (rekey seal|recovery) configuration: .*",  # Vault: vault/rekey.go, BarrierRekeyInit and RecoveryRekeyInit
]

# Names and values of the recorded conversations that stand for any other.
SAMPLES = re.compile(r'"(?:none|nosuch|x)"|\b(?:none|k|imported key imported|MD5|rsassa|aes256-gcm96|P-\d+)\b|\d+ bytes')


def recorded():
    """The texts of recorded 500s, as patterns."""
    for name in glob.glob(os.path.join(CASES, "*", "*.json")):
        with open(name, encoding="utf-8") as file:
            steps = json.load(file)["steps"]
        for step in steps:
            expect = step.get("expect")
            if step.get("status") != 500 or not isinstance(expect, dict):
                continue
            for text in expect.get("errors", []):
                if text.startswith("<~"):
                    yield re.sub(r"\$\{[^}]*\}", ".*", text[2:-1])
                elif not text.startswith("<"):
                    yield ".*".join(re.escape(part) for part in SAMPLES.split(text))


ALLOWED = [re.compile(pattern, re.S) for pattern in [*recorded(), *FIVE_HUNDREDS]]
assert len(ALLOWED) > 40, "the recorded conversations were not found"


def problem(status, content_type, content, path):
    """What is wrong with an answer, or None."""
    if path.endswith("/sys/health"):
        return None  # the query chooses its status
    is_json = content_type.startswith("application/json")
    if status < 400 and not (is_json and content):
        return None
    try:
        body = json.loads(content)
    except ValueError:
        return f"{status} whose body is no JSON: {content[:200]!r}"
    if status < 400:
        return None
    errors = body.get("errors") if isinstance(body, dict) else None
    if not isinstance(errors, list):
        # A batch with an item that fails and a deleted version are answered whole.
        whole = isinstance(body, dict) and isinstance(body.get("data"), dict) and status in (400, 404)
        return None if whole else f"{status} without errors: {content[:200]!r}"
    if errors == ["permission denied"]:
        return "403 for the root token: an earlier request ended it"
    if status == 501 and errors and errors[0].endswith("is not supported by this server"):
        return None
    if status == 500 and errors and all(any(allowed.fullmatch(text) for allowed in ALLOWED) for text in errors):
        return None
    return f"{status}: {content[:300]!r}" if status >= 500 else None


# Values are learned from answers; the run's own token is not to be revoked by its accessor.
OWN = {os.environ["SOS_OWN_ACCESSOR"], os.environ["VAULT_TOKEN"]}


@schemathesis.hook
def before_call(ctx, case, kwargs):
    for part in (case.body, case.query, case.path_parameters):
        if isinstance(part, dict):
            part.update({name: "another" for name, value in part.items() if isinstance(value, str) and value in OWN})


@schemathesis.check
def vaults_answer(ctx, response, case):
    content_type = response.headers.get("content-type", [""])[0]
    found = problem(response.status_code, content_type, response.content, case.path)
    if found:
        raise AssertionError(found)
