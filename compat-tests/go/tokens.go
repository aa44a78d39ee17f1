package main

import (
	"context"
	"fmt"
	"time"

	vault "github.com/hashicorp/vault/api"
)

func tokens(s *suite) {
	auth := s.client.Auth().Token()
	s.check("create and look up", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", DisplayName: "disk", Metadata: map[string]string{"rack": "7"}, NumUses: 50})
		secret, err := auth.Lookup(got.ClientToken)
		if err != nil {
			return err
		}
		ttl, err := secret.TokenTTL()
		if err != nil {
			return err
		}
		meta, err := secret.TokenMetadata()
		if err != nil {
			return err
		}
		uses, err := secret.TokenRemainingUses()
		return first(err, want("policies", got.Policies, "[default]"), want("renewable", got.Renewable, true), want("lease", got.LeaseDuration, 3600),
			want("display name", secret.Data["display_name"], "token-disk"), want("ttl", ttl > 59*time.Minute && ttl <= time.Hour, true),
			want("metadata", meta, "map[rack:7]"), want("uses", uses, 50), want("orphan", secret.Data["orphan"], false),
			want("type", secret.Data["type"], "service"), want("accessor", secret.Data["accessor"], got.Accessor))
	})
	s.check("look up by accessor and as self", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}})
		byAccessor, err := auth.LookupAccessor(got.Accessor)
		if err != nil {
			return err
		}
		self, err := s.as(got.ClientToken).Auth().Token().LookupSelf()
		return first(err, want("id", byAccessor.Data["id"], ""), want("self", self.Data["id"], got.ClientToken))
	})
	s.check("renew", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h"})
		longer, err := s.as(got.ClientToken).Auth().Token().RenewSelf(7200)
		if err != nil {
			return err
		}
		byToken, err := auth.Renew(got.ClientToken, 1800)
		if err != nil {
			return err
		}
		byAccessor, err := auth.RenewAccessor(got.Accessor, 600)
		return first(err, want("self", longer.Auth.LeaseDuration, 7200), want("by token", byToken.Auth.LeaseDuration, 1800),
			want("by accessor", byAccessor.Auth.LeaseDuration, 600))
	})
	s.check("renewal above the explicit maximum is capped with a warning", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "10m", ExplicitMaxTTL: "20m"})
		secret, err := auth.Renew(got.ClientToken, 7200)
		return first(err, want("capped", secret.Auth.LeaseDuration <= 1200 && secret.Auth.LeaseDuration > 1100, true),
			want("warnings", len(secret.Warnings) > 0, true))
	})
	s.check("a periodic token", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, Period: "30m"})
		secret, err := auth.Renew(got.ClientToken, 7200)
		return first(err, want("created with", got.LeaseDuration, 1800), want("renewed to", secret.Auth.LeaseDuration, 1800))
	})
	s.check("the lifetime watcher renews a 3 s token", watch(s))
	s.check("not renewable", func() error {
		no := false
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "1h", Renewable: &no})
		_, err := auth.Renew(got.ClientToken, 0)
		return first(want("renewable", got.Renewable, false), refused(err, 400, "lease is not renewable"))
	})
	s.check("a token dies with its TTL", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "1s"})
		time.Sleep(1500 * time.Millisecond)
		_, err := s.as(got.ClientToken).Auth().Token().LookupSelf()
		return refused(err, 403, "permission denied")
	})
	s.check("uses are counted", func() error {
		got := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}, NumUses: 2})
		client := s.as(got.ClientToken)
		for range 2 {
			if _, err := client.Auth().Token().LookupSelf(); err != nil {
				return err
			}
		}
		_, err := client.Auth().Token().LookupSelf()
		return refused(err, 403, "permission denied")
	})
	s.check("revoking a tree", func() error {
		parent, child, err := family(s)
		if err != nil {
			return err
		}
		if err := auth.RevokeTree(parent); err != nil {
			return err
		}
		_, parentErr := auth.Lookup(parent)
		_, childErr := auth.Lookup(child)
		return first(refused(parentErr, 403, "bad token"), refused(childErr, 403, "bad token"))
	})
	s.check("revoking a parent alone keeps its child as an orphan", func() error {
		parent, child, err := family(s)
		if err != nil {
			return err
		}
		if err := auth.RevokeOrphan(parent); err != nil {
			return err
		}
		_, parentErr := auth.Lookup(parent)
		secret, err := auth.Lookup(child)
		return first(refused(parentErr, 403, "bad token"), err, want("orphan", secret.Data["orphan"], true), auth.RevokeTree(child))
	})
	s.check("revoke self and by accessor", func() error {
		a := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}})
		b := s.token(&vault.TokenCreateRequest{Policies: []string{"default"}})
		if err := first(s.as(a.ClientToken).Auth().Token().RevokeSelf(""), auth.RevokeAccessor(b.Accessor)); err != nil {
			return err
		}
		_, aErr := auth.Lookup(a.ClientToken)
		_, bErr := auth.Lookup(b.ClientToken)
		return first(refused(aErr, 403, "bad token"), refused(bErr, 403, "bad token"))
	})
	s.check("an orphan", func() error {
		secret, err := auth.CreateOrphan(&vault.TokenCreateRequest{Policies: []string{"default"}})
		if err != nil {
			return err
		}
		looked, err := auth.Lookup(secret.Auth.ClientToken)
		return first(err, want("orphan", looked.Data["orphan"], true), want("in auth", secret.Auth.Orphan, true), auth.RevokeTree(secret.Auth.ClientToken))
	})
	s.check("a batch token", func() error {
		got, err := auth.Create(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "10m", Type: "batch"})
		if err != nil {
			return err
		}
		secret, err := s.as(got.Auth.ClientToken).Auth().Token().LookupSelf()
		if err != nil {
			return err
		}
		_, renewErr := s.as(got.Auth.ClientToken).Auth().Token().RenewSelf(60)
		return first(want("accessor", got.Auth.Accessor, ""), want("type", secret.Data["type"], "batch"), want("renewable", got.Auth.Renewable, false),
			want("renewal refused", renewErr != nil, true))
	})
	s.check("a token role", func() error {
		role := "compat-go-" + s.uid
		if _, err := s.client.Logical().Write("auth/token/roles/"+role, map[string]any{"allowed_policies": "default", "orphan": true, "token_period": "20m"}); err != nil {
			return err
		}
		s.later(func() { _, _ = s.client.Logical().Delete("auth/token/roles/" + role) })
		secret, err := auth.CreateWithRole(&vault.TokenCreateRequest{}, role)
		if err != nil {
			return err
		}
		_, refusal := auth.CreateWithRole(&vault.TokenCreateRequest{Policies: []string{"other"}}, role)
		return first(want("lease", secret.Auth.LeaseDuration, 1200), want("orphan", secret.Auth.Orphan, true),
			want("refused", refusal != nil, true), auth.RevokeTree(secret.Auth.ClientToken))
	})
	s.check("bad tokens", func() error {
		_, none := s.as("").Auth().Token().LookupSelf()
		_, wrong := s.as("hvs.nonsense").Auth().Token().LookupSelf()
		_, lookup := auth.Lookup("hvs.nonsense")
		_, accessor := auth.LookupAccessor("nonsense")
		return first(refused(none, 403, "permission denied"), refused(wrong, 403, "permission denied"), refused(lookup, 403, "bad token"),
			refused(accessor, 400, "invalid accessor"), auth.RevokeTree("hvs.nonsense"))
	})
}

// family makes a token and a child of it.
func family(s *suite) (parent, child string, err error) {
	name := s.policy("family", `path "auth/token/create" { capabilities = ["create", "update"] }`)
	p := s.token(&vault.TokenCreateRequest{Policies: []string{name, "default"}})
	c, err := s.as(p.ClientToken).Auth().Token().Create(&vault.TokenCreateRequest{Policies: []string{"default"}})
	if err != nil {
		return "", "", err
	}
	return p.ClientToken, c.Auth.ClientToken, nil
}

// watch lets the client's own renewal loop keep a short token alive for longer than its first life.
func watch(s *suite) func() error {
	return func() error {
		secret, err := s.client.Auth().Token().Create(&vault.TokenCreateRequest{Policies: []string{"default"}, TTL: "3s"})
		if err != nil {
			return err
		}
		client := s.as(secret.Auth.ClientToken)
		watcher, err := client.NewLifetimeWatcher(&vault.LifetimeWatcherInput{Secret: secret, Increment: 3})
		if err != nil {
			return err
		}
		go watcher.Start()
		defer watcher.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for renewals := 0; renewals < 3; {
			select {
			case <-watcher.RenewCh():
				renewals++
			case err := <-watcher.DoneCh():
				return fmt.Errorf("stopped after %d renewals: %v", renewals, err)
			case <-ctx.Done():
				return fmt.Errorf("only %d renewals in 10 s", renewals)
			}
		}
		_, err = client.Auth().Token().LookupSelf()
		return err
	}
}
