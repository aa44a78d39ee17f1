"""Run the unmodified hvac client against the server at VAULT_ADDR with the token in VAULT_TOKEN.

Checks that hvac gets what it gets from Vault: answers, and the exceptions it makes of refusals. Prints one line per
check, then "N passed, N failed"; the exit status is 1 when a check fails. Arguments name the groups to run.
"""
import base64
import contextlib
import io
import os
import secrets
import sys
import tarfile
import time

import hvac
from hvac.exceptions import Forbidden, InvalidPath, InvalidRequest

PLAIN = base64.b64encode(b"the disk's key").decode()


class Suite:
    """One group's run: a client with the token it was given, and names of its own."""

    def __init__(self, group):
        self.group, self.uid = group, secrets.token_hex(4)
        self.client = self.as_token(os.environ["VAULT_TOKEN"])
        self.passed = self.failed = 0
        self.undo = contextlib.ExitStack()

    def as_token(self, token):
        return hvac.Client(url=os.environ["VAULT_ADDR"], token=token, verify=os.environ.get("VAULT_CACERT", True))

    @contextlib.contextmanager
    def check(self, name):
        try:
            yield
        except Exception as problem:  # whatever a client raises fails this check alone
            self.failed += 1
            print("FAIL python/%s: %s: %s: %s" % (self.group, name, type(problem).__name__, str(problem).replace("\n", "\\n")))
        else:
            self.passed += 1
            print("ok   python/%s: %s" % (self.group, name))

    def mount(self, kind, options=None):
        path = "compat-py-%s-%s" % (self.group, self.uid)
        with self.check("mount " + kind):
            self.client.sys.enable_secrets_engine(kind, path=path, options=options)
        self.undo.callback(quietly, self.client.sys.disable_secrets_engine, path)
        return path

    def policy(self, name, rules):
        full = "compat-py-%s-%s" % (name, self.uid)
        self.client.sys.create_or_update_policy(full, rules)
        self.undo.callback(quietly, self.client.sys.delete_policy, full)
        return full

    def token(self, **options):
        auth = self.client.auth.token.create(**options)["auth"]
        if auth["accessor"]:
            self.undo.callback(quietly, self.client.auth.token.revoke_accessor, auth["accessor"])
        return auth


def quietly(f, *args):
    with contextlib.suppress(Exception):
        f(*args)


def same(what, got, expected):
    if got != expected:
        raise AssertionError("%s: expected %r, got %r" % (what, expected, got))


@contextlib.contextmanager
def raises(kind, text=""):
    """Demand exactly this exception of hvac's, with this text in it."""
    try:
        yield
    except Exception as problem:
        if type(problem) is not kind or text not in str(problem):
            raise AssertionError("expected %s %r, got %s: %s" % (kind.__name__, text, type(problem).__name__, problem)) from problem
    else:
        raise AssertionError("expected %s %r, got no exception" % (kind.__name__, text))


def soon(f):
    """Repeat what a server refuses only in the first moment after a mount."""
    for _ in range(100):
        try:
            return f()
        except InvalidRequest as problem:
            if "Upgrading from non-versioned" not in str(problem):
                raise
            time.sleep(0.05)
    return f()


def kv1(s):
    path = s.mount("kv", {"version": "1"})
    kv = s.client.secrets.kv.v1
    with s.check("create, read, update"):
        kv.create_or_update_secret("app/db", {"user": "u", "n": 12345678901234567, "nested": {"a": [1, None, True]}}, mount_point=path)
        got = kv.read_secret("app/db", mount_point=path)
        same("data", got["data"], {"user": "u", "n": 12345678901234567, "nested": {"a": [1, None, True]}})
        same("lease", got["lease_duration"], 2764800)
        kv.create_or_update_secret("app/db", {"user": "w"}, mount_point=path)
        same("data", kv.read_secret("app/db", mount_point=path)["data"], {"user": "w"})
    with s.check("list"):
        kv.create_or_update_secret("app/cache", {"k": "v"}, mount_point=path)
        same("keys", kv.list_secrets("app", mount_point=path)["data"]["keys"], ["cache", "db"])
        same("top", kv.list_secrets("", mount_point=path)["data"]["keys"], ["app/"])
        with raises(InvalidPath):
            kv.list_secrets("nothing", mount_point=path)
    with s.check("delete"):
        same("status", kv.delete_secret("app/db", mount_point=path).status_code, 204)
        with raises(InvalidPath):
            kv.read_secret("app/db", mount_point=path)
    with s.check("generic read, write, list, delete"):
        s.client.write_data(path + "/g", data={"k": "v"})
        same("data", s.client.read(path + "/g")["data"], {"k": "v"})
        same("keys", s.client.list(path)["data"]["keys"], ["app/", "g"])
        s.client.delete(path + "/g")
        same("gone", s.client.read(path + "/g"), None)


def kv2(s):
    path = s.mount("kv", {"version": "2"})
    kv = s.client.secrets.kv.v2
    read = lambda **more: kv.read_secret_version("app/db", mount_point=path, raise_on_deleted_version=True, **more)
    with s.check("configure"):
        soon(lambda: kv.configure(max_versions=20, cas_required=False, delete_version_after="0s", mount_point=path))
        config = kv.read_configuration(mount_point=path)["data"]
        same("config", [config[k] for k in ("max_versions", "cas_required", "delete_version_after")], [20, False, "0s"])
    with s.check("create, read versions"):
        first = kv.create_or_update_secret("app/db", {"user": "u"}, mount_point=path)
        same("version", first["data"]["version"], 1)
        kv.create_or_update_secret("app/db", {"user": "w"}, mount_point=path)
        now = read()["data"]
        same("data", now["data"], {"user": "w"})
        same("version", now["metadata"]["version"], 2)
        same("old", read(version=1)["data"]["data"], {"user": "u"})
    with s.check("check-and-set"):
        with raises(InvalidRequest, "check-and-set parameter did not match the current version"):
            kv.create_or_update_secret("app/db", {"user": "x"}, cas=1, mount_point=path)
        same("version", kv.create_or_update_secret("app/db", {"user": "x"}, cas=2, mount_point=path)["data"]["version"], 3)
    with s.check("patch"):
        same("version", kv.patch("app/db", {"more": "1"}, mount_point=path)["data"]["version"], 4)
        same("data", read()["data"]["data"], {"user": "x", "more": "1"})
        with raises(InvalidPath):
            kv.patch("nothing", {"a": 1}, mount_point=path)
    with s.check("delete and undelete"):
        kv.delete_latest_version_of_secret("app/db", mount_point=path)
        with raises(InvalidPath):
            read()
        gone = kv.read_secret_version("app/db", mount_point=path, raise_on_deleted_version=False)["data"]
        same("data", gone["data"], None)
        same("deletion time", gone["metadata"]["deletion_time"] != "", True)
        kv.undelete_secret_versions("app/db", [4], mount_point=path)
        same("data", read()["data"]["data"], {"user": "x", "more": "1"})
    with s.check("delete and destroy chosen versions"):
        kv.delete_secret_versions("app/db", [1, 2], mount_point=path)
        kv.destroy_secret_versions("app/db", [2], mount_point=path)
        versions = kv.read_secret_metadata("app/db", mount_point=path)["data"]["versions"]
        same("1", (versions["1"]["deletion_time"] != "", versions["1"]["destroyed"]), (True, False))
        same("2", versions["2"]["destroyed"], True)
        same("3", (versions["3"]["deletion_time"], versions["3"]["destroyed"]), ("", False))
        with raises(InvalidPath):
            read(version=2)
        with raises(InvalidPath):
            read(version=99)
    with s.check("metadata"):
        kv.update_metadata("app/db", max_versions=5, cas_required=True, delete_version_after="1h30m", custom_metadata={"owner": "ops"}, mount_point=path)
        meta = kv.read_secret_metadata("app/db", mount_point=path)["data"]
        same("metadata", [meta[k] for k in ("max_versions", "cas_required", "delete_version_after", "custom_metadata", "current_version")],
             [5, True, "1h30m0s", {"owner": "ops"}, 4])
        with raises(InvalidRequest, "check-and-set parameter required for this call"):
            kv.create_or_update_secret("app/db", {"user": "y"}, mount_point=path)
    with s.check("subkeys"):
        same("subkeys", s.client.read(path + "/subkeys/app/db")["data"]["subkeys"], {"user": None, "more": None})
    with s.check("list and delete everything"):
        same("keys", kv.list_secrets("app", mount_point=path)["data"]["keys"], ["db"])
        kv.delete_metadata_and_all_versions("app/db", mount_point=path)
        with raises(InvalidPath):
            kv.read_secret_metadata("app/db", mount_point=path)
        with raises(InvalidPath):
            kv.list_secrets("app", mount_point=path)


def transit(s):
    path = s.mount("transit")
    transit = s.client.secrets.transit
    for kind in ("aes256-gcm96", "chacha20-poly1305"):  # hvac itself refuses aes128-gcm96
        with s.check("round trip with " + kind):
            transit.create_key(kind, key_type=kind, mount_point=path)
            sealed = transit.encrypt_data(kind, plaintext=PLAIN, mount_point=path)["data"]["ciphertext"]
            same("prefix", sealed[:9], "vault:v1:")
            same("plaintext", transit.decrypt_data(kind, ciphertext=sealed, mount_point=path)["data"]["plaintext"], PLAIN)
    with s.check("read and list keys"):
        key = transit.read_key("aes256-gcm96", mount_point=path)["data"]
        same("key", [key[k] for k in ("name", "type", "latest_version", "min_decryption_version", "exportable", "derived", "deletion_allowed")],
             ["aes256-gcm96", "aes256-gcm96", 1, 1, False, False, False])
        same("created", isinstance(key["keys"]["1"], int), True)
        same("keys", transit.list_keys(mount_point=path)["data"]["keys"], ["aes256-gcm96", "chacha20-poly1305"])
        with raises(InvalidPath):
            transit.read_key("nothing", mount_point=path)
    with s.check("rotate, rewrap, minimum version"):
        old = transit.encrypt_data("aes256-gcm96", plaintext=PLAIN, mount_point=path)["data"]["ciphertext"]
        transit.rotate_key("aes256-gcm96", mount_point=path)
        new = transit.rewrap_data("aes256-gcm96", ciphertext=old, mount_point=path)["data"]["ciphertext"]
        same("prefix", new[:9], "vault:v2:")
        for sealed in (old, new):
            same("plaintext", transit.decrypt_data("aes256-gcm96", ciphertext=sealed, mount_point=path)["data"]["plaintext"], PLAIN)
        transit.update_key_configuration("aes256-gcm96", min_decryption_version=2, mount_point=path)
        with raises(InvalidRequest, "disallowed by policy (too old)"):
            transit.decrypt_data("aes256-gcm96", ciphertext=old, mount_point=path)
    with s.check("batches"):
        items = [{"plaintext": base64.b64encode(b"disk %d" % i).decode()} for i in range(50)]
        sealed = transit.encrypt_data("aes256-gcm96", batch_input=items, mount_point=path)["data"]["batch_results"]
        opened = transit.decrypt_data("aes256-gcm96", batch_input=[{"ciphertext": r["ciphertext"]} for r in sealed], mount_point=path)["data"]["batch_results"]
        same("plaintexts", [r["plaintext"] for r in opened], [i["plaintext"] for i in items])
        with raises(InvalidRequest):
            transit.decrypt_data("aes256-gcm96", batch_input=[{"ciphertext": "vault:v2:AAAA"}], mount_point=path)
    with s.check("data keys"):
        made = transit.generate_data_key("aes256-gcm96", key_type="plaintext", bits=256, mount_point=path)["data"]
        same("bytes", len(base64.b64decode(made["plaintext"])), 32)
        same("opened", transit.decrypt_data("aes256-gcm96", ciphertext=made["ciphertext"], mount_point=path)["data"]["plaintext"], made["plaintext"])
        same("wrapped", "plaintext" in transit.generate_data_key("aes256-gcm96", key_type="wrapped", mount_point=path)["data"], False)
    with s.check("derived and convergent"):
        transit.create_key("conv", convergent_encryption=True, derived=True, mount_point=path)
        context = base64.b64encode(b"rack 7").decode()
        both = [transit.encrypt_data("conv", plaintext=PLAIN, context=context, mount_point=path)["data"]["ciphertext"] for _ in range(2)]
        same("convergent", both[0], both[1])
        same("plaintext", transit.decrypt_data("conv", ciphertext=both[0], context=context, mount_point=path)["data"]["plaintext"], PLAIN)
    with s.check("random bytes"):
        same("random", len(base64.b64decode(transit.generate_random_bytes(n_bytes=16, mount_point=path)["data"]["random_bytes"])), 16)
    with s.check("bad input"):
        with raises(InvalidRequest, "encryption key not found"):
            transit.decrypt_data("nothing", ciphertext="vault:v1:AAAA", mount_point=path)
        with raises(InvalidRequest, "illegal base64"):
            transit.encrypt_data("aes256-gcm96", plaintext="***", mount_point=path)
        with raises(InvalidRequest, "invalid ciphertext: no prefix"):
            transit.decrypt_data("aes256-gcm96", ciphertext="AAAA", mount_point=path)
    with s.check("delete a key"):
        with raises(InvalidRequest, "deletion is not allowed for this key"):
            transit.delete_key("conv", mount_point=path)
        transit.update_key_configuration("conv", deletion_allowed=True, mount_point=path)
        transit.delete_key("conv", mount_point=path)
        with raises(InvalidPath):
            transit.read_key("conv", mount_point=path)


def signing(s):
    """Signatures, HMACs and hashes: every parameter that hvac's methods have."""
    path = s.mount("transit")
    transit = s.client.secrets.transit
    kinds = ("ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "rsa-2048", "rsa-3072", "rsa-4096")

    def valid(name, what=PLAIN, **more):
        return transit.verify_signed_data(name, what, mount_point=path, **more)["data"]["valid"]

    for kind in kinds:
        with s.check("sign and verify with " + kind):
            transit.create_key(kind, key_type=kind, mount_point=path)
            made = transit.sign_data(kind, hash_input=PLAIN, mount_point=path)["data"]
            same("version", (made["signature"][:9], made["key_version"]), ("vault:v1:", 1))
            same("valid", (valid(kind, signature=made["signature"]), valid(kind, "b3RoZXI=", signature=made["signature"])), (True, False))
            key = transit.read_key(kind, mount_point=path)["data"]
            same("key", (key["supports_signing"], bool(key["keys"]["1"]["public_key"])), (True, True))
    with s.check("hash algorithms and prehashed input"):
        digest = transit.hash_data(PLAIN, algorithm="sha2-512", output_format="base64", mount_point=path)["data"]["sum"]
        for kind in ("ecdsa-p521", "rsa-2048"):
            made = transit.sign_data(kind, hash_input=digest, hash_algorithm="sha2-512", prehashed=True, mount_point=path)["data"]["signature"]
            same("valid", valid(kind, signature=made, hash_algorithm="sha2-512"), True)
            same("another hash", valid(kind, signature=made, hash_algorithm="sha2-256"), False)
    with s.check("signature algorithms and salt lengths"):
        for algorithm, salt in (("pss", "auto"), ("pss", "hash"), ("pss", "20"), ("pkcs1v15", None)):
            options = {k: v for k, v in {"signature_algorithm": algorithm, "salt_length": salt}.items() if v}
            made = transit.sign_data("rsa-2048", hash_input=PLAIN, mount_point=path, **options)["data"]["signature"]
            same("valid", valid("rsa-2048", signature=made, **options), True)
    with s.check("marshaling"):
        made = transit.sign_data("ecdsa-p256", hash_input=PLAIN, marshaling_algorithm="jws", mount_point=path)["data"]["signature"]
        same("bytes", len(made.split(":")[2]), 86)
        same("valid", valid("ecdsa-p256", signature=made, marshaling_algorithm="jws"), True)
    with s.check("batches of signatures"):
        items = [{"input": base64.b64encode(b"disk %d" % i).decode(), "reference": str(i)} for i in range(50)] + [{"input": "***"}]
        made = transit.sign_data("ecdsa-p256", batch_input=items, mount_point=path)["data"]["batch_results"]
        same("order", [r.get("reference") for r in made[:50]], [str(i) for i in range(50)])
        same("signed", all("signature" in r for r in made[:50]) and "error" in made[50], True)
        same("valid", valid("ecdsa-p256", items[49]["input"], signature=made[49]["signature"]), True)
    with s.check("derived Ed25519 keys"):
        transit.create_key("derived", key_type="ed25519", derived=True, mount_point=path)
        context = base64.b64encode(b"rack 7").decode()
        made = transit.sign_data("derived", hash_input=PLAIN, context=context, mount_point=path)["data"]
        same("public key", bool(made["public_key"]), True)
        same("valid", valid("derived", signature=made["signature"], context=context), True)
    with s.check("old versions"):
        old = transit.sign_data("ecdsa-p256", hash_input=PLAIN, mount_point=path)["data"]["signature"]
        transit.rotate_key("ecdsa-p256", mount_point=path)
        again = transit.sign_data("ecdsa-p256", hash_input=PLAIN, key_version=1, mount_point=path)["data"]
        same("version", again["key_version"], 1)
        same("valid", [valid("ecdsa-p256", signature=signature) for signature in (old, again["signature"])], [True, True])
    with s.check("HMACs"):
        for algorithm in (None, "sha2-224", "sha2-384", "sha2-512"):
            made = transit.generate_hmac("ecdsa-p256", hash_input=PLAIN, algorithm=algorithm, key_version=1, mount_point=path)["data"]["hmac"]
            same("version", made[:9], "vault:v1:")
            same("valid", valid("ecdsa-p256", hmac=made, hash_algorithm=algorithm), True)
    with s.check("hashes"):
        for output, expected in (("hex", "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
                                 ("base64", "ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=")):
            same(output, transit.hash_data("YQ==", algorithm="sha2-256", output_format=output, mount_point=path)["data"]["sum"], expected)
    with s.check("bad input"):
        transit.create_key("aes", mount_point=path)
        with raises(InvalidRequest, "does not support signing"):
            transit.sign_data("aes", hash_input=PLAIN, mount_point=path)
        with raises(InvalidRequest, "signing key not found"):
            transit.sign_data("nothing", hash_input=PLAIN, mount_point=path)
        with raises(InvalidRequest, "invalid signature: no prefix"):
            valid("ecdsa-p256", signature="AAAA")


def lifecycle(s):
    """Keys that leave, come back and lose old versions."""
    path = s.mount("transit")
    transit = s.client.secrets.transit
    for kind, exports in (("aes256-gcm96", ("encryption-key", "hmac-key")), ("rsa-2048", ("encryption-key", "signing-key", "hmac-key")),
                          ("ecdsa-p384", ("signing-key", "hmac-key")), ("ed25519", ("signing-key", "hmac-key"))):
        with s.check("export and backup of " + kind):
            transit.create_key(kind, key_type=kind, exportable=True, allow_plaintext_backup=True, mount_point=path)
            transit.rotate_key(kind, mount_point=path)
            shown = {what: transit.export_key(kind, key_type=what, mount_point=path)["data"] for what in exports}
            for what in exports:
                same("versions", sorted(shown[what]["keys"]), ["1", "2"])
                same("latest", transit.export_key(kind, key_type=what, version="latest", mount_point=path)["data"]["keys"], {"2": shown[what]["keys"]["2"]})
            backup = transit.backup_key(kind, mount_point=path)["data"]["backup"]
            transit.restore_key(backup, name=kind + "-2", mount_point=path)
            same("restored", transit.export_key(kind + "-2", key_type=exports[0], mount_point=path)["data"]["keys"], shown[exports[0]]["keys"])
            with raises(hvac.exceptions.InternalServerError, "already exists"):
                transit.restore_key(backup, mount_point=path)
            transit.restore_key(backup, force=True, mount_point=path)
    with s.check("what is not exportable stays"):
        transit.create_key("closed", mount_point=path)
        with raises(InvalidRequest, "private key material is not exportable"):
            transit.export_key("closed", key_type="encryption-key", mount_point=path)
        with raises(hvac.exceptions.InternalServerError, "exporting is disallowed on the policy"):
            transit.backup_key("closed", mount_point=path)
        transit.update_key_configuration("closed", exportable=True, allow_plaintext_backup=True, mount_point=path)
        same("backup", bool(transit.backup_key("closed", mount_point=path)["data"]["backup"]), True)
    with s.check("trim"):
        old = transit.encrypt_data("aes256-gcm96", plaintext=PLAIN, key_version=1, mount_point=path)["data"]["ciphertext"]
        with raises(InvalidRequest):
            transit.trim_key("aes256-gcm96", min_version=2, mount_point=path)
        # Not in one call: hvac wants the one above the other, which the server does not.
        transit.update_key_configuration("aes256-gcm96", min_encryption_version=2, mount_point=path)
        transit.update_key_configuration("aes256-gcm96", min_decryption_version=2, mount_point=path)
        transit.trim_key("aes256-gcm96", min_version=2, mount_point=path)
        same("available", transit.read_key("aes256-gcm96", mount_point=path)["data"]["min_available_version"], 2)
        with raises(InvalidRequest, "disallowed by policy (too old)"):
            transit.decrypt_data("aes256-gcm96", ciphertext=old, mount_point=path)
    with s.check("rotation by age"):
        transit.create_key("aged", auto_rotate_period="24h", mount_point=path)
        same("period", transit.read_key("aged", mount_point=path)["data"]["auto_rotate_period"], 86400)
        transit.update_key_configuration("aged", auto_rotate_period="0", mount_point=path)
        same("off", transit.read_key("aged", mount_point=path)["data"]["auto_rotate_period"], 0)
    with s.check("data keys of every length, random bytes of every form"):
        for bits in (128, 256, 512):
            made = transit.generate_data_key("rsa-2048", key_type="plaintext", bits=bits, mount_point=path)["data"]
            same("bytes", len(base64.b64decode(made["plaintext"])) * 8, bits)
        same("hex", len(transit.generate_random_bytes(n_bytes=16, output_format="hex", mount_point=path)["data"]["random_bytes"]), 32)


def token(s):
    tokens = s.client.auth.token
    with s.check("authenticated"):
        same("root", s.client.is_authenticated(), True)
        same("nonsense", s.as_token("hvs.nonsense").is_authenticated(), False)
    with s.check("create and look up"):
        auth = s.token(policies=["default"], ttl="1h", display_name="disk", meta={"rack": "7"}, num_uses=50)
        same("auth", [auth[k] for k in ("policies", "lease_duration", "renewable", "token_type", "orphan", "metadata")],
             [["default"], 3600, True, "service", False, {"rack": "7"}])
        data = tokens.lookup(auth["client_token"])["data"]
        same("data", [data[k] for k in ("id", "accessor", "display_name", "creation_ttl", "num_uses", "orphan", "path", "explicit_max_ttl")],
             [auth["client_token"], auth["accessor"], "token-disk", 3600, 50, False, "auth/token/create", 0])
        same("by accessor", tokens.lookup_accessor(auth["accessor"])["data"]["id"], "")
        same("self", s.as_token(auth["client_token"]).auth.token.lookup_self()["data"]["meta"], {"rack": "7"})
    with s.check("renew"):
        auth = s.token(policies=["default"], ttl="1h")
        same("self", s.as_token(auth["client_token"]).auth.token.renew_self(increment="2h")["auth"]["lease_duration"], 7200)
        same("token", tokens.renew(auth["client_token"], increment="30m")["auth"]["lease_duration"], 1800)
        same("accessor", tokens.renew_accessor(auth["accessor"], increment="10m")["auth"]["lease_duration"], 600)
    with s.check("renewal above the maximum is capped with a warning"):
        auth = s.token(policies=["default"], ttl="10m", explicit_max_ttl="20m")
        got = tokens.renew(auth["client_token"], increment="2h")
        same("capped", 1100 < got["auth"]["lease_duration"] <= 1200, True)
        same("warned", bool(got["warnings"]), True)
    with s.check("revoke self, token, accessor"):
        for revoke in (lambda a: s.as_token(a["client_token"]).auth.token.revoke_self(), lambda a: tokens.revoke(a["client_token"]),
                       lambda a: tokens.revoke_accessor(a["accessor"])):
            auth = s.token(policies=["default"])
            revoke(auth)
            with raises(Forbidden, "bad token"):
                tokens.lookup(auth["client_token"])
            with raises(Forbidden, "permission denied"):
                s.as_token(auth["client_token"]).auth.token.lookup_self()
    with s.check("trees and orphans"):
        name = s.policy("family", 'path "auth/token/create" { capabilities = ["create", "update"] }')
        for revoke, child_lives in ((tokens.revoke, False), (tokens.revoke_and_orphan_children, True)):
            parent = s.token(policies=[name, "default"])
            child = s.as_token(parent["client_token"]).auth.token.create(policies=["default"])["auth"]
            revoke(parent["client_token"])
            if child_lives:
                same("orphan", tokens.lookup(child["client_token"])["data"]["orphan"], True)
                tokens.revoke(child["client_token"])
            else:
                with raises(Forbidden, "bad token"):
                    tokens.lookup(child["client_token"])
        orphan = tokens.create_orphan(policies=["default"])["auth"]
        same("orphan", orphan["orphan"], True)
        tokens.revoke(orphan["client_token"])
    with s.check("roles"):
        role = "compat-py-" + s.uid
        tokens.create_or_update_role(role, allowed_policies=["default"], orphan=True, token_period="20m")
        s.undo.callback(quietly, tokens.delete_role, role)
        same("role", tokens.read_role(role)["data"]["allowed_policies"], ["default"])
        same("listed", role in tokens.list_roles()["data"]["keys"], True)
        made = tokens.create(role_name=role)["auth"]
        same("lease", made["lease_duration"], 1200)
        tokens.revoke(made["client_token"])
        tokens.delete_role(role)
        with raises(InvalidPath):
            tokens.read_role(role)
    with s.check("accessors"):
        auth = s.token(policies=["default"])
        same("listed", auth["accessor"] in tokens.list_accessors()["data"]["keys"], True)
        with raises(InvalidRequest, "invalid accessor"):
            tokens.lookup_accessor("nonsense")
    with s.check("expiry and uses"):
        short = s.token(policies=["default"], ttl="1s")
        few = s.as_token(s.token(policies=["default"], num_uses=1)["client_token"])
        few.auth.token.lookup_self()
        with raises(Forbidden):
            few.auth.token.lookup_self()
        time.sleep(1.5)
        with raises(Forbidden):
            s.as_token(short["client_token"]).auth.token.lookup_self()


def policy(s):
    path = s.mount("kv", {"version": "1"})
    rules = 'path "%s/app/*" { capabilities = ["create", "read", "update", "list"] }\npath "%s/app/locked" { capabilities = ["deny"] }' % (path, path)
    name = s.policy("rules", rules)
    client = s.as_token(s.token(policies=[name])["client_token"])
    kv = client.secrets.kv.v1
    with s.check("policies: read, list, delete"):
        same("rules", s.client.sys.read_policy(name)["data"]["rules"], rules)
        same("listed", name in s.client.sys.list_policies()["data"]["policies"], True)
        same("acl", s.client.sys.read_acl_policy(name)["data"]["policy"], rules)
        same("acl listed", name in s.client.sys.list_acl_policies()["data"]["keys"], True)
        extra = s.policy("extra", 'path "x" { capabilities = ["read"] }')
        s.client.sys.delete_policy(extra)
        with raises(InvalidPath):
            s.client.sys.read_policy(extra)
    with s.check("allowed"):
        kv.create_or_update_secret("app/a", {"k": "v"}, mount_point=path)
        same("data", kv.read_secret("app/a", mount_point=path)["data"], {"k": "v"})
    with s.check("refused"):
        for refused in (lambda: kv.delete_secret("app/a", mount_point=path), lambda: kv.read_secret("app/locked", mount_point=path),
                        lambda: kv.read_secret("other/a", mount_point=path), lambda: client.sys.list_mounted_secrets_engines(),
                        lambda: kv.create_or_update_secret("other/a", {"k": "v"}, mount_point=path)):
            with raises(Forbidden, "permission denied"):
                refused()
    with s.check("capabilities"):
        same("self", client.sys.get_capabilities([path + "/app/a"])["data"]["capabilities"], ["create", "list", "read", "update"])
        same("token", s.client.sys.get_capabilities([path + "/app/locked"], token=client.token)["data"]["capabilities"], ["deny"])
    with s.check("policy as a dictionary"):
        other = s.policy("json", {"path": {path + "/*": {"capabilities": ["read"]}}})
        reader = s.as_token(s.token(policies=[other])["client_token"])
        same("data", reader.secrets.kv.v1.read_secret("app/a", mount_point=path)["data"], {"k": "v"})


def wrapping(s):
    with s.check("wrap, look up, unwrap, not twice"):
        token = s.client.sys.wrap({"dek": "x"}, ttl=300)["wrap_info"]["token"]
        same("ttl", s.client.write_data("sys/wrapping/lookup", data={"token": token})["data"]["creation_ttl"], 300)
        same("data", s.client.sys.unwrap(token=token)["data"], {"dek": "x"})
        with raises(InvalidRequest, "wrapping token is not valid or does not exist"):
            s.client.sys.unwrap(token=token)
    with s.check("a wrapped token and its unwrapping by the wrapping token"):
        made = s.client.auth.token.create(policies=["default"], wrap_ttl="60s")
        same("auth", made["auth"], None)
        same("ttl", made["wrap_info"]["ttl"], 60)
        auth = s.as_token(made["wrap_info"]["token"]).sys.unwrap()["auth"]
        same("accessor", auth["accessor"], made["wrap_info"]["wrapped_accessor"])
        s.client.auth.token.revoke(auth["client_token"])
    with s.check("rewrap"):
        token = s.client.sys.wrap({"dek": "x"})["wrap_info"]["token"]
        again = s.client.write_data("sys/wrapping/rewrap", data={"token": token})["wrap_info"]["token"]
        same("data", s.client.sys.unwrap(token=again)["data"], {"dek": "x"})


def system(s):
    sys_ = s.client.sys
    with s.check("initialised, sealed, health, leader"):
        same("initialised", sys_.is_initialized(), True)
        same("sealed", sys_.is_sealed(), False)
        same("health", sys_.read_health_status(method="HEAD").status_code, 200)
        same("health", sys_.read_health_status(method="GET")["initialized"], True)
        same("leader", "ha_enabled" in sys_.read_leader_status(), True)
        status = sys_.read_seal_status()
        same("seal status", (status["sealed"], status["t"] <= status["n"], bool(status["version"])), (False, True, True))
        same("ha", s.client.ha_status["ha_enabled"] in (True, False), True)
    with s.check("snapshots"):
        answer = sys_.take_raft_snapshot()
        names = tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:gz").getnames()
        same("the last file of a snapshot", names[-1], "SHA256SUMS.sealed")
        with raises(InvalidRequest, "damaged"):
            sys_.restore_raft_snapshot(b"no snapshot")
        with raises(InvalidRequest, "damaged"):
            sys_.force_restore_raft_snapshot(answer.content[:-600])
    with s.check("metrics"):
        text = s.client.adapter.get("/v1/sys/metrics", params={"format": "prometheus"}).text
        same("unsealed", [line.split()[-1] for line in text.splitlines() if line.startswith("vault_core_unsealed{")], ["1"])
    path = s.mount("kv", {"version": "1"})
    with s.check("mounts"):
        mounts = sys_.list_mounted_secrets_engines()
        same("data", mounts["data"][path + "/"]["type"], "kv")
        same("top level", mounts[path + "/"]["options"], {"version": "1"})
        with raises(InvalidRequest, "path is already in use at"):
            sys_.enable_secrets_engine("kv", path=path)
    with s.check("tune, remount"):
        sys_.tune_mount_configuration(path, default_lease_ttl="30m", max_lease_ttl="1h", description="tuned")
        got = sys_.read_mount_configuration(path)
        same("ttl", (got["data"]["default_lease_ttl"], got["max_lease_ttl"]), (1800, 3600))
        s.client.write_data(path + "/a", data={"k": "v"})
        s.undo.callback(quietly, sys_.disable_secrets_engine, path + "-moved")
        s.client.sys.move_backend(path, path + "-moved")
        moved = None
        for _ in range(100):
            moved = quiet_read(s.client, path + "-moved/a")
            if moved:
                break
            time.sleep(0.05)
        same("data", moved["data"], {"k": "v"})
    with s.check("auth methods"):
        same("token", sys_.list_auth_methods()["data"]["token/"]["type"], "token")
    with s.check("key status, rotate"):
        term = sys_.get_encryption_key_status()["data"]["term"]
        sys_.rotate_encryption_key()
        same("term", sys_.get_encryption_key_status()["data"]["term"] > term, True)
    with s.check("audit device"):
        name = "compat-py-" + s.uid
        sys_.enable_audit_device("file", path=name, options={"file_path": "/dev/null"})
        s.undo.callback(quietly, sys_.disable_audit_device, name)
        same("listed", sys_.list_enabled_audit_devices()["data"][name + "/"]["type"], "file")
        same("hash", sys_.calculate_hash(name, "x")["data"]["hash"][:12], "hmac-sha256:")
        sys_.disable_audit_device(name)
    with s.check("generate-root and rekey status"):
        same("generate-root", sys_.read_root_generation_progress()["started"], False)
        same("rekey", "started" in sys_.read_rekey_progress(), True)
    with s.check("errors"):
        with raises(InvalidPath, "no handler for route"):
            s.client.write_data("compat-py-nothing-%s/a" % s.uid, data={"a": 1})
        with raises(InvalidRequest):
            sys_.read_lease("auth/token/create/nothing")
        with raises(Forbidden, "permission denied"):
            s.as_token("").sys.list_mounted_secrets_engines()


def quiet_read(client, path):
    try:
        return client.read(path)
    except hvac.exceptions.VaultError:
        return None


GROUPS = {"kv1": kv1, "kv2": kv2, "transit": transit, "transit-signing": signing, "transit-lifecycle": lifecycle, "token": token, "policy": policy, "wrapping": wrapping,
          "sys": system}


def main():
    if not os.environ.get("VAULT_ADDR") or not os.environ.get("VAULT_TOKEN"):
        sys.exit("set VAULT_ADDR and VAULT_TOKEN")
    passed = failed = 0
    for group in sys.argv[1:] or sorted(GROUPS):
        if group not in GROUPS:
            sys.exit("no group %r" % group)
        s = Suite(group)
        with s.undo:
            try:
                GROUPS[group](s)
            except Exception as problem:
                with s.check("preparing"):
                    raise problem
        passed, failed = passed + s.passed, failed + s.failed
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
