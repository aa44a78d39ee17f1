package main

import (
	"context"
	"fmt"
	"slices"

	vault "github.com/hashicorp/vault/api"
)

func policies(s *suite) {
	ctx := context.Background()
	mount := s.mount("kv", map[string]string{"version": "1"})
	sys := s.client.Sys()
	rules := fmt.Sprintf(`
		path "%[1]s/app/*"      { capabilities = ["create", "read", "update", "list"] }
		path "%[1]s/app/locked" { capabilities = ["deny"] }
		path "%[1]s/+/shared"   { capabilities = ["read"] }
		path "%[1]s/typed/*"    { capabilities = ["create", "update"] allowed_parameters = { "colour" = ["red", "blue"] } }
	`, mount)
	name := s.policy("rules", rules)
	client := s.as(s.token(&vault.TokenCreateRequest{Policies: []string{name}}).ClientToken)

	s.check("read, list and delete", func() error {
		got, err := sys.GetPolicy(name)
		if err != nil {
			return err
		}
		all, err := sys.ListPolicies()
		if err != nil {
			return err
		}
		extra := s.policy("extra", `path "x" { capabilities = ["read"] }`)
		if err := sys.DeletePolicy(extra); err != nil {
			return err
		}
		gone, err := sys.GetPolicy(extra)
		return first(err, want("rules", got, rules), want("listed", slices.Contains(all, name), true),
			want("default listed", slices.Contains(all, "default"), true), want("gone", gone, ""))
	})
	s.check("what is allowed works", func() error {
		if err := client.KVv1(mount).Put(ctx, "app/a", map[string]any{"k": "v"}); err != nil {
			return err
		}
		got, err := client.KVv1(mount).Get(ctx, "app/a")
		return first(err, want("value", got.Data["k"], "v"))
	})
	s.check("what is not allowed is refused", func() error {
		deleteErr := client.KVv1(mount).Delete(ctx, "app/a")
		_, denyErr := client.KVv1(mount).Get(ctx, "app/locked")
		_, elsewhere := client.KVv1(mount).Get(ctx, "other/a")
		_, sysErr := client.Sys().ListMounts()
		return first(refused(deleteErr, 403, "1 error occurred:\n\t* permission denied\n\n"), refused(denyErr, 403, "permission denied"),
			refused(elsewhere, 403, "permission denied"), refused(sysErr, 403, "permission denied"))
	})
	s.check("a + in a path", func() error {
		if err := s.client.KVv1(mount).Put(ctx, "team/shared", map[string]any{"k": "v"}); err != nil {
			return err
		}
		_, err := client.KVv1(mount).Get(ctx, "team/shared")
		return first(err, refused(client.KVv1(mount).Put(ctx, "team/shared", map[string]any{"k": "w"}), 403, "permission denied"))
	})
	s.check("allowed parameters", func() error {
		return first(client.KVv1(mount).Put(ctx, "typed/a", map[string]any{"colour": "red"}),
			refused(client.KVv1(mount).Put(ctx, "typed/a", map[string]any{"colour": "green"}), 403, "permission denied"),
			refused(client.KVv1(mount).Put(ctx, "typed/a", map[string]any{"size": "1"}), 403, "permission denied"))
	})
	s.check("capabilities", func() error {
		self, err := client.Sys().CapabilitiesSelf(mount + "/app/a")
		if err != nil {
			return err
		}
		of, err := sys.Capabilities(client.Token(), mount+"/app/locked")
		if err != nil {
			return err
		}
		root, err := sys.CapabilitiesSelf("anything")
		return first(err, want("self", self, "[create list read update]"), want("of the token", of, "[deny]"), want("root", root, "[root]"))
	})
	s.check("a change applies at once", func() error {
		if err := sys.PutPolicy(name, fmt.Sprintf(`path "%s/app/*" { capabilities = ["delete"] }`, mount)); err != nil {
			return err
		}
		_, err := client.KVv1(mount).Get(ctx, "app/a")
		return first(refused(err, 403, "permission denied"), client.KVv1(mount).Delete(ctx, "app/a"))
	})
	s.check("a policy that does not parse", func() error {
		return refused(sys.PutPolicy(name, `path "x" { capabilities = ["fly"] }`), 400, "invalid capability")
	})
	s.check("root cannot be changed", func() error {
		return first(refused(sys.PutPolicy("root", `path "x" {}`), 400, "cannot update"), refused(sys.DeletePolicy("default"), 400, "cannot delete default policy"))
	})
	s.check("only root gives root", func() error {
		parent := s.policy("parent", `path "auth/token/create" { capabilities = ["update"] }`)
		_, err := s.as(s.token(&vault.TokenCreateRequest{Policies: []string{parent}}).ClientToken).Auth().Token().Create(&vault.TokenCreateRequest{Policies: []string{"root"}})
		return refused(err, 400, "child policies must be subset of parent")
	})
}
