package main

import (
	"context"
	"time"

	vault "github.com/hashicorp/vault/api"
)

func wrapping(s *suite) {
	ctx := context.Background()
	mount := s.mount("kv", map[string]string{"version": "1"})
	if err := s.client.KVv1(mount).Put(ctx, "a", map[string]any{"k": "v"}); err != nil {
		panic(err)
	}
	wrapped := s.as(s.client.Token())
	wrapped.SetWrappingLookupFunc(func(string, string) string { return "5m" })
	logical := s.client.Logical()

	s.check("wrap a read, unwrap, and not twice", func() error {
		secret, err := wrapped.Logical().Read(mount + "/a")
		if err != nil {
			return err
		}
		if err := first(want("data", secret.Data == nil, true), want("ttl", secret.WrapInfo.TTL, 300), want("path", secret.WrapInfo.CreationPath, mount+"/a"),
			want("recent", time.Since(secret.WrapInfo.CreationTime) < time.Minute, true)); err != nil {
			return err
		}
		opened, err := logical.Unwrap(secret.WrapInfo.Token)
		if err != nil {
			return err
		}
		_, again := logical.Unwrap(secret.WrapInfo.Token)
		return first(want("data", opened.Data["k"], "v"), refused(again, 400, "wrapping token is not valid or does not exist"))
	})
	s.check("unwrap with the wrapping token as the client's", func() error {
		secret, err := wrapped.Logical().Read(mount + "/a")
		if err != nil {
			return err
		}
		opened, err := s.as(secret.WrapInfo.Token).Logical().Unwrap("")
		return first(err, want("data", opened.Data["k"], "v"))
	})
	s.check("look up without using it up", func() error {
		secret, err := wrapped.Logical().Write("sys/wrapping/wrap", map[string]any{"dek": "x"})
		if err != nil {
			return err
		}
		info, err := logical.Write("sys/wrapping/lookup", map[string]any{"token": secret.WrapInfo.Token})
		if err != nil {
			return err
		}
		opened, err := logical.Unwrap(secret.WrapInfo.Token)
		return first(err, want("ttl", info.Data["creation_ttl"], 300), want("path", info.Data["creation_path"], "sys/wrapping/wrap"),
			want("data", opened.Data["dek"], "x"))
	})
	s.check("rewrap", func() error {
		secret, err := wrapped.Logical().Write("sys/wrapping/wrap", map[string]any{"dek": "x"})
		if err != nil {
			return err
		}
		again, err := logical.Write("sys/wrapping/rewrap", map[string]any{"token": secret.WrapInfo.Token})
		if err != nil {
			return err
		}
		_, gone := logical.Unwrap(secret.WrapInfo.Token)
		opened, err := logical.Unwrap(again.WrapInfo.Token)
		return first(err, refused(gone, 400, "wrapping token is not valid"), want("data", opened.Data["dek"], "x"))
	})
	s.check("a wrapped token", func() error {
		secret, err := wrapped.Auth().Token().Create(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "10m"})
		if err != nil {
			return err
		}
		opened, err := logical.Unwrap(secret.WrapInfo.Token)
		if err != nil {
			return err
		}
		self, err := s.as(opened.Auth.ClientToken).Auth().Token().LookupSelf()
		return first(err, want("accessor", secret.WrapInfo.WrappedAccessor, opened.Auth.Accessor), want("self", self.Data["accessor"], opened.Auth.Accessor),
			s.client.Auth().Token().RevokeTree(opened.Auth.ClientToken))
	})
	s.check("a wrapping token ends with its TTL", func() error {
		brief := s.as(s.client.Token())
		brief.SetWrappingLookupFunc(func(string, string) string { return "1" })
		secret, err := brief.Logical().Read(mount + "/a")
		if err != nil {
			return err
		}
		time.Sleep(1500 * time.Millisecond)
		_, err = logical.Unwrap(secret.WrapInfo.Token)
		return refused(err, 400, "wrapping token is not valid or does not exist")
	})
	s.check("nonsense is refused", func() error {
		_, err := logical.Unwrap("hvs.nonsense")
		return refused(err, 400, "wrapping token is not valid or does not exist")
	})
}
