package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	vault "github.com/hashicorp/vault/api"
)

func kv1(s *suite) {
	ctx := context.Background()
	path := s.mount("kv", map[string]string{"version": "1"})
	kv := s.client.KVv1(path)

	s.check("put and get", func() error {
		if err := kv.Put(ctx, "app/db", map[string]any{"user": "u", "n": 12345678901234567, "nested": map[string]any{"a": []any{1, nil, true}}}); err != nil {
			return err
		}
		got, err := kv.Get(ctx, "app/db")
		if err != nil {
			return err
		}
		return first(want("user", got.Data["user"], "u"), want("n", got.Data["n"], json.Number("12345678901234567")),
			want("nested", got.Data["nested"], "map[a:[1 <nil> true]]"), want("lease", got.Raw.LeaseDuration, 2764800))
	})
	s.check("a path with odd characters round trips", func() error {
		odd := "a b+c/ü@%/x"
		if err := kv.Put(ctx, odd, map[string]any{"k": "v"}); err != nil {
			return err
		}
		got, err := kv.Get(ctx, odd)
		if err != nil {
			return err
		}
		return first(want("value", got.Data["k"], "v"), kv.Delete(ctx, odd))
	})
	s.check("list", func() error {
		if err := kv.Put(ctx, "app/cache", map[string]any{"k": "v"}); err != nil {
			return err
		}
		secret, err := s.client.Logical().List(path + "/app")
		if err != nil {
			return err
		}
		top, err := s.client.Logical().List(path)
		if err != nil {
			return err
		}
		return first(want("keys", secret.Data["keys"], "[cache db]"), want("top", top.Data["keys"], "[app/]"))
	})
	s.check("list of nothing is nil", func() error {
		secret, err := s.client.Logical().List(path + "/nothing")
		return first(err, want("secret", secret == nil, true))
	})
	s.check("delete, then not found", func() error {
		if err := kv.Delete(ctx, "app/db"); err != nil {
			return err
		}
		_, err := kv.Get(ctx, "app/db")
		secret, rawErr := s.client.Logical().Read(path + "/app/db")
		return first(want("is ErrSecretNotFound", errors.Is(err, vault.ErrSecretNotFound), true), rawErr, want("read", secret == nil, true))
	})
	s.check("an empty write is refused", func() error {
		_, err := s.client.Logical().Write(path+"/empty", map[string]any{})
		return refused(err, 400, "missing data fields")
	})
}

func kv2(s *suite) {
	ctx := context.Background()
	path := s.mount("kv", map[string]string{"version": "2"})
	kv := s.client.KVv2(path)

	s.check("put gives version metadata", func() error {
		// The reference server needs a moment after mounting; clients retry by hand there.
		var got *vault.KVSecret
		err := soon(func() (err error) {
			got, err = kv.Put(ctx, "app/db", map[string]any{"user": "u", "n": 7})
			return err
		})
		if err != nil {
			return err
		}
		return first(want("version", got.VersionMetadata.Version, 1), want("destroyed", got.VersionMetadata.Destroyed, false),
			want("created", time.Since(got.VersionMetadata.CreatedTime) < time.Minute, true))
	})
	s.check("get the newest and an older version", func() error {
		if _, err := kv.Put(ctx, "app/db", map[string]any{"user": "w"}); err != nil {
			return err
		}
		newest, err := kv.Get(ctx, "app/db")
		if err != nil {
			return err
		}
		old, err := kv.GetVersion(ctx, "app/db", 1)
		if err != nil {
			return err
		}
		return first(want("newest", newest.Data, "map[user:w]"), want("version", newest.VersionMetadata.Version, 2),
			want("old", old.Data, "map[n:7 user:u]"), want("old version", old.VersionMetadata.Version, 1))
	})
	s.check("check-and-set", func() error {
		_, err := kv.Put(ctx, "app/db", map[string]any{"user": "x"}, vault.WithCheckAndSet(1))
		if err := refused(err, 400, "check-and-set parameter did not match the current version"); err != nil {
			return err
		}
		got, err := kv.Put(ctx, "app/db", map[string]any{"user": "x"}, vault.WithCheckAndSet(2))
		if err != nil {
			return err
		}
		_, err = kv.Put(ctx, "app/db", map[string]any{"user": "y"}, vault.WithCheckAndSet(0))
		return first(want("version", got.VersionMetadata.Version, 3), refused(err, 400, "check-and-set"))
	})
	s.check("patch merges", func() error {
		got, err := kv.Patch(ctx, "app/db", map[string]any{"more": map[string]any{"a": 1, "b": 2}})
		if err != nil {
			return err
		}
		_, err = kv.Patch(ctx, "app/db", map[string]any{"more": map[string]any{"a": nil}, "user": nil})
		if err != nil {
			return err
		}
		now, err := kv.Get(ctx, "app/db")
		if err != nil {
			return err
		}
		return first(want("version", got.VersionMetadata.Version, 4), want("data", now.Data, "map[more:map[b:2]]"))
	})
	s.check("patch by reading and writing", func() error {
		got, err := kv.Patch(ctx, "app/db", map[string]any{"rw": "1"}, vault.WithMergeMethod(vault.KVMergeMethodReadWrite))
		return first(err, want("version", got.VersionMetadata.Version, 6))
	})
	s.check("patch of nothing", func() error {
		_, err := kv.Patch(ctx, "nothing", map[string]any{"a": 1})
		return want("is ErrSecretNotFound", errors.Is(err, vault.ErrSecretNotFound), true)
	})
	s.check("versions as a list", func() error {
		versions, err := kv.GetVersionsAsList(ctx, "app/db")
		if err != nil {
			return err
		}
		return first(want("count", len(versions), 6), want("last", versions[5].Version, 6))
	})
	s.check("delete and undelete", func() error {
		if err := kv.Delete(ctx, "app/db"); err != nil {
			return err
		}
		gone, err := kv.Get(ctx, "app/db")
		if err != nil {
			return err
		}
		if err := first(want("data", gone.Data == nil, true), want("deleted", gone.VersionMetadata.DeletionTime.IsZero(), false)); err != nil {
			return err
		}
		if err := kv.Undelete(ctx, "app/db", []int{6}); err != nil {
			return err
		}
		back, err := kv.Get(ctx, "app/db")
		return first(err, want("data", back.Data["rw"], "1"))
	})
	s.check("delete chosen versions", func() error {
		if err := kv.DeleteVersions(ctx, "app/db", []int{1, 2}); err != nil {
			return err
		}
		gone, err := kv.GetVersion(ctx, "app/db", 2)
		if err != nil {
			return err
		}
		kept, err := kv.GetVersion(ctx, "app/db", 3)
		return first(err, want("gone", gone.Data == nil, true), want("kept", kept.Data, "map[user:x]"))
	})
	s.check("destroy", func() error {
		if err := kv.Destroy(ctx, "app/db", []int{3}); err != nil {
			return err
		}
		gone, err := kv.GetVersion(ctx, "app/db", 3)
		if err != nil {
			return err
		}
		meta, err := kv.GetMetadata(ctx, "app/db")
		return first(err, want("data", gone.Data == nil, true), want("destroyed", gone.VersionMetadata.Destroyed, true),
			want("metadata", meta.Versions["3"].Destroyed, true))
	})
	s.check("rollback", func() error {
		got, err := kv.Rollback(ctx, "app/db", 4)
		if err != nil {
			return err
		}
		now, err := kv.Get(ctx, "app/db")
		return first(err, want("version", got.VersionMetadata.Version, 7), want("data", now.Data, "map[more:map[a:1 b:2] user:x]"))
	})
	s.check("an absent version", func() error {
		_, err := kv.GetVersion(ctx, "app/db", 99)
		return want("is ErrSecretNotFound", errors.Is(err, vault.ErrSecretNotFound), true)
	})
	s.check("metadata: put, get, patch", func() error {
		err := kv.PutMetadata(ctx, "app/db", vault.KVMetadataPutInput{MaxVersions: 5, CASRequired: true,
			CustomMetadata: map[string]any{"owner": "ops", "tier": "1"}, DeleteVersionAfter: 90 * time.Minute})
		if err != nil {
			return err
		}
		maxVersions := 4
		if err := kv.PatchMetadata(ctx, "app/db", vault.KVMetadataPatchInput{MaxVersions: &maxVersions, CustomMetadata: map[string]any{"tier": nil}}); err != nil {
			return err
		}
		meta, err := kv.GetMetadata(ctx, "app/db")
		if err != nil {
			return err
		}
		return first(want("max", meta.MaxVersions, 4), want("cas", meta.CASRequired, true), want("custom", meta.CustomMetadata, "map[owner:ops]"),
			want("after", meta.DeleteVersionAfter, 90*time.Minute), want("current", meta.CurrentVersion, 7))
	})
	s.check("required check-and-set", func() error {
		_, err := kv.Put(ctx, "app/db", map[string]any{"a": 1})
		if err := refused(err, 400, "check-and-set parameter required for this call"); err != nil {
			return err
		}
		got, err := kv.Put(ctx, "app/db", map[string]any{"a": 1}, vault.WithCheckAndSet(7))
		if err != nil {
			return err
		}
		meta, err := kv.GetMetadata(ctx, "app/db")
		return first(err, want("will be deleted", got.VersionMetadata.DeletionTime.After(time.Now()), true),
			want("trimmed to", len(meta.Versions), 4), want("oldest", meta.OldestVersion, 5))
	})
	s.check("subkeys", func() error {
		secret, err := s.client.Logical().Read(path + "/subkeys/app/db")
		return first(err, want("subkeys", secret.Data["subkeys"], "map[a:<nil>]"))
	})
	s.check("list and delete metadata", func() error {
		if _, err := kv.Put(ctx, "app/other", map[string]any{"a": 1}); err != nil {
			return err
		}
		listed, err := s.client.Logical().List(path + "/metadata/app")
		if err != nil {
			return err
		}
		if err := first(want("keys", listed.Data["keys"], "[db other]"), kv.DeleteMetadata(ctx, "app/db")); err != nil {
			return err
		}
		_, err = kv.GetMetadata(ctx, "app/db")
		return want("is ErrSecretNotFound", errors.Is(err, vault.ErrSecretNotFound), true)
	})
	s.check("engine configuration", func() error {
		if _, err := s.client.Logical().Write(path+"/config", map[string]any{"max_versions": 3, "cas_required": false, "delete_version_after": "3h"}); err != nil {
			return err
		}
		secret, err := s.client.Logical().Read(path + "/config")
		return first(err, want("max", secret.Data["max_versions"], 3), want("cas", secret.Data["cas_required"], false),
			want("after", secret.Data["delete_version_after"], "3h0m0s"))
	})
	s.check("a 1 MiB value", func() error {
		large := strings.Repeat("x", 1<<20-64)
		if _, err := kv.Put(ctx, "large", map[string]any{"v": large}); err != nil {
			return err
		}
		got, err := kv.Get(ctx, "large")
		return first(err, want("same", got.Data["v"] == large, true))
	})
	s.check("a patch without the right", func() error {
		name := s.policy("kv2", fmt.Sprintf("path %q { capabilities = [\"read\", \"update\"] }", path+"/data/*"))
		client := s.as(s.token(&vault.TokenCreateRequest{Policies: []string{name}}).ClientToken)
		_, err := client.KVv2(path).Patch(ctx, "large", map[string]any{"v": nil})
		return first(refused(err, 403, "permission denied"), want("says patch", strings.Contains(err.Error(), "patch"), true))
	})
}

// soon repeats what a server refuses only for a moment.
func soon(f func() error) error {
	err := f()
	for i := 0; i < 100 && err != nil && strings.Contains(err.Error(), "Upgrading from non-versioned"); i++ {
		time.Sleep(50 * time.Millisecond)
		err = f()
	}
	return err
}
