package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	vault "github.com/hashicorp/vault/api"
)

func system(s *suite) {
	ctx := context.Background()
	sys := s.client.Sys()
	nobody := s.as("")
	s.check("health, without a token", func() error {
		got, err := nobody.Sys().Health()
		return first(err, want("initialized", got.Initialized, true), want("sealed", got.Sealed, false), want("standby", got.Standby, false),
			want("version", got.Version != "", true), want("cluster", got.ClusterID != "", true), want("time", time.Since(time.Unix(got.ServerTimeUTC, 0)) < time.Minute, true))
	})
	s.check("seal status, initialised, leader", func() error {
		seal, err := nobody.Sys().SealStatus()
		if err != nil {
			return err
		}
		ready, err := nobody.Sys().InitStatus()
		if err != nil {
			return err
		}
		_, err = nobody.Sys().Leader()
		return first(err, want("initialized", seal.Initialized, true), want("sealed", seal.Sealed, false), want("type", seal.Type != "", true),
			want("threshold", seal.T > 0, true), want("shares", seal.N >= seal.T, true), want("init", ready, true))
	})
	s.check("a second init is refused", func() error {
		_, err := nobody.Sys().Init(&vault.InitRequest{SecretShares: 1, SecretThreshold: 1})
		return want("refused", err != nil && strings.Contains(err.Error(), "already initialized"), true)
	})
	s.check("snapshots", func() error {
		// The client itself refuses a snapshot that does not end as it should.
		var snapshot bytes.Buffer
		if err := sys.RaftSnapshot(&snapshot); err != nil {
			return err
		}
		cut := bytes.NewReader(snapshot.Bytes()[:snapshot.Len()-600])
		return first(refused(sys.RaftSnapshotRestore(strings.NewReader("no snapshot"), false), 400, "damaged"),
			refused(sys.RaftSnapshotRestore(cut, true), 400, "damaged"))
	})
	path := s.mount("kv", map[string]string{"version": "1"})
	s.check("mounts", func() error {
		mounts, err := sys.ListMounts()
		if err != nil {
			return err
		}
		one, err := sys.GetMount(path)
		if err != nil {
			return err
		}
		mine := mounts[path+"/"]
		return first(want("type", mine.Type, "kv"), want("options", mine.Options, "map[version:1]"), want("uuid", mine.UUID != "", true),
			want("accessor", one.Accessor, mine.Accessor), want("cubbyhole", mounts["cubbyhole/"].Type, "cubbyhole"),
			want("system", mounts["sys/"].Type, "system"), want("identity", mounts["identity/"].Type, "identity"))
	})
	s.check("mount errors", func() error {
		taken := sys.Mount(path, &vault.MountInput{Type: "kv"})
		nested := sys.Mount(path+"/below", &vault.MountInput{Type: "kv"})
		unknown := sys.Mount("compat-go-unknown-"+s.uid, &vault.MountInput{Type: "nosuchtype"})
		_, nothing := s.client.Logical().Write("compat-go-nothing-"+s.uid+"/a", map[string]any{"a": 1})
		return first(refused(taken, 400, "path is already in use at"), refused(nested, 400, "path is already in use at"),
			refused(unknown, 400, "plugin not found in the catalog: nosuchtype"), refused(nothing, 404, "no handler for route"))
	})
	s.check("tune", func() error {
		description := "tuned"
		if err := sys.TuneMount(path, vault.MountConfigInput{DefaultLeaseTTL: "30m", MaxLeaseTTL: "1h", Description: &description, ListingVisibility: "unauth"}); err != nil {
			return err
		}
		got, err := sys.MountConfig(path)
		if err != nil {
			return err
		}
		mount, err := sys.GetMount(path)
		return first(err, want("default", got.DefaultLeaseTTL, 1800), want("max", got.MaxLeaseTTL, 3600), want("description", mount.Description, "tuned"),
			want("visibility", got.ListingVisibility, "unauth"))
	})
	s.check("upgrade to version 2 keeps the data", func() error {
		if err := s.client.KVv1(path).Put(ctx, "a/b", map[string]any{"k": "v"}); err != nil {
			return err
		}
		if err := sys.TuneMount(path, vault.MountConfigInput{Options: map[string]string{"version": "2"}}); err != nil {
			return err
		}
		var got *vault.KVSecret
		err := soon(func() (err error) { got, err = s.client.KVv2(path).Get(ctx, "a/b"); return err })
		return first(err, want("data", got.Data, "map[k:v]"), want("version", got.VersionMetadata.Version, 1))
	})
	s.check("what the CLI asks before every kv command", func() error {
		secret, err := s.client.Logical().Read("sys/internal/ui/mounts/" + path + "/a/b")
		return first(err, want("path", secret.Data["path"], path+"/"), want("type", secret.Data["type"], "kv"), want("options", secret.Data["options"], "map[version:2]"))
	})
	s.check("remount", func() error {
		to := path + "-moved"
		s.later(func() { _ = sys.Unmount(to) })
		if err := sys.Remount(path, to); err != nil {
			return err
		}
		got, err := s.client.KVv2(to).Get(ctx, "a/b")
		_, gone := s.client.KVv2(path).Get(ctx, "a/b")
		return first(err, want("data", got.Data, "map[k:v]"), want("gone", errors.Is(gone, vault.ErrSecretNotFound) || gone != nil, true), sys.Unmount(to))
	})
	s.check("auth mounts", func() error {
		mounts, err := sys.ListAuth()
		return first(err, want("token", mounts["token/"].Type, "token"))
	})
	s.check("key status and rotation", func() error {
		before, err := sys.KeyStatus()
		if err != nil {
			return err
		}
		if err := sys.Rotate(); err != nil {
			return err
		}
		after, err := sys.KeyStatus()
		return first(err, want("term", after.Term >= before.Term+1, true), want("recent", time.Since(after.InstallTime) < time.Minute, true))
	})
	s.check("leases", func() error {
		token := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "10m"})
		_, bogus := sys.Lookup("auth/token/create/nothing")
		_, renew := sys.Renew("auth/token/create/nothing", 60)
		return first(want("made", token.Accessor != "", true), want("lookup refused", bogus != nil, true), refused(renew, 400, "lease not found"))
	})
	s.check("audit device", func() error {
		device := "compat-go-" + s.uid
		if err := sys.EnableAuditWithOptions(device, &vault.EnableAuditOptions{Type: "file", Options: map[string]string{"file_path": "/dev/null"}}); err != nil {
			return err
		}
		s.later(func() { _ = sys.DisableAudit(device) })
		all, err := sys.ListAudit()
		if err != nil {
			return err
		}
		hash, err := sys.AuditHash(device, "x")
		return first(err, want("type", all[device+"/"].Type, "file"), want("hash", strings.HasPrefix(hash, "hmac-sha256:"), true), sys.DisableAudit(device))
	})
	s.check("cubbyhole belongs to one token", func() error {
		token := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}})
		if _, err := s.as(token.ClientToken).Logical().Write("cubbyhole/a", map[string]any{"k": "v"}); err != nil {
			return err
		}
		mine, err := s.as(token.ClientToken).Logical().Read("cubbyhole/a")
		if err != nil {
			return err
		}
		other, err := s.client.Logical().Read("cubbyhole/a")
		return first(err, want("mine", mine.Data["k"], "v"), want("other", other == nil, true))
	})
	s.check("random and hash tools", func() error {
		random, err := s.client.Logical().Write("sys/tools/random/16", map[string]any{"format": "hex"})
		if err != nil {
			return err
		}
		hash, err := s.client.Logical().Write("sys/tools/hash/sha2-256", map[string]any{"input": "YQ=="})
		return first(err, want("length", len(fmt.Sprint(random.Data["random_bytes"])), 32),
			want("sum", hash.Data["sum"], "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"))
	})
	s.check("unknown paths", func() error {
		_, err := s.client.Logical().Write("sys/nosuch", map[string]any{})
		secret, read := s.client.Logical().Read("sys/nosuch")
		return first(refused(err, 404, "unsupported path"), want("read", secret == nil && read == nil || read != nil, true))
	})
	s.check("generate-root can be started and cancelled", func() error {
		status, err := sys.GenerateRootStatus()
		if err != nil {
			return err
		}
		started, err := sys.GenerateRootInit(strings.Repeat("a", status.OTPLength), "")
		return first(err, want("started", started.Started, true), want("nonce", started.Nonce != "", true), sys.GenerateRootCancel())
	})
}
