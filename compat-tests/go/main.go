// Command compat runs HashiCorp's unmodified Go client against the server at VAULT_ADDR with the token in VAULT_TOKEN
// and checks that it gets what it gets from Vault. It prints one line per check, then "N passed, N failed", and exits
// with status 1 when a check fails. Arguments name the groups to run; without any, all run.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	vault "github.com/hashicorp/vault/api"
)

// groups are the selectable parts, each in a file of its own.
var groups = map[string]func(*suite){
	"kv1":               kv1,
	"kv2":               kv2,
	"transit":           transit,
	"transit-signing":   transitSigning,
	"transit-lifecycle": transitLifecycle,
	"token":             tokens,
	"policy":            policies,
	"wrapping":          wrapping,
	"sys":               system,
}

// suite is the state of one group's run: the client with the token it was given, and names of its own.
type suite struct {
	client *vault.Client
	uid    string
	group  string
	passed int
	failed int
	undo   []func()
}

func main() {
	wanted := os.Args[1:]
	if len(wanted) == 0 {
		for name := range groups {
			wanted = append(wanted, name)
		}
		sort.Strings(wanted)
	}
	passed, failed := 0, 0
	for _, name := range wanted {
		run, known := groups[name]
		if !known {
			fmt.Fprintf(os.Stderr, "no group %q\n", name)
			os.Exit(2)
		}
		s := newSuite(name)
		s.runGroup(run)
		passed += s.passed
		failed += s.failed
	}
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func newSuite(group string) *suite {
	if os.Getenv("VAULT_ADDR") == "" || os.Getenv("VAULT_TOKEN") == "" {
		fmt.Fprintln(os.Stderr, "set VAULT_ADDR and VAULT_TOKEN")
		os.Exit(2)
	}
	config := vault.DefaultConfig() // reads VAULT_ADDR, VAULT_CACERT and the rest
	if config.Error != nil {
		fmt.Fprintln(os.Stderr, config.Error)
		os.Exit(2)
	}
	client, err := vault.NewClient(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	random := make([]byte, 4)
	if _, err := rand.Read(random); err != nil {
		panic(err)
	}
	return &suite{client: client, uid: hex.EncodeToString(random), group: group}
}

// runGroup runs the checks and then, whatever happened, removes what they made. A panic between checks fails the group.
func (s *suite) runGroup(run func(*suite)) {
	defer func() {
		for i := len(s.undo) - 1; i >= 0; i-- {
			s.undo[i]()
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			s.check("preparing", func() error { return fmt.Errorf("%v", p) })
		}
	}()
	run(s)
}

func (s *suite) later(f func()) { s.undo = append(s.undo, f) }

// check runs one check; a panic (a nil where a client would dereference one) counts as its failure.
func (s *suite) check(name string, f func() error) {
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return f()
	}()
	if err != nil {
		s.failed++
		fmt.Printf("FAIL go/%s: %s: %v\n", s.group, name, strings.ReplaceAll(err.Error(), "\n", "\\n"))
		return
	}
	s.passed++
	fmt.Printf("ok   go/%s: %s\n", s.group, name)
}

// mount makes a secrets engine for this run alone and returns its path.
func (s *suite) mount(kind string, options map[string]string) string {
	path := fmt.Sprintf("compat-go-%s-%s", s.group, s.uid)
	s.check("mount "+kind, func() error {
		return s.client.Sys().Mount(path, &vault.MountInput{Type: kind, Options: options})
	})
	s.later(func() { _ = s.client.Sys().Unmount(path) })
	return path
}

// as returns a client like the suite's with another token.
func (s *suite) as(token string) *vault.Client {
	client, err := s.client.Clone()
	if err != nil {
		panic(err)
	}
	client.SetToken(token)
	return client
}

// policy writes a policy for this run alone and returns its name.
func (s *suite) policy(name, rules string) string {
	full := fmt.Sprintf("compat-go-%s-%s", name, s.uid)
	if err := s.client.Sys().PutPolicy(full, rules); err != nil {
		panic(err)
	}
	s.later(func() { _ = s.client.Sys().DeletePolicy(full) })
	return full
}

// token makes a token that is revoked at the end.
func (s *suite) token(request *vault.TokenCreateRequest) *vault.SecretAuth {
	secret, err := s.client.Auth().Token().Create(request)
	if err != nil {
		panic(err)
	}
	s.later(func() { _ = s.client.Auth().Token().RevokeAccessor(secret.Auth.Accessor) })
	return secret.Auth
}

// want compares two values by how they print, which is how people compare them too.
func want(what string, got, expected any) error {
	if g, e := fmt.Sprintf("%v", got), fmt.Sprintf("%v", expected); g != e {
		return fmt.Errorf("%s: expected %s, got %s", what, e, g)
	}
	return nil
}

// refused demands an error answer with this status and, if not empty, this text in one of its errors.
func refused(err error, status int, text string) error {
	var response *vault.ResponseError
	if !errors.As(err, &response) {
		return fmt.Errorf("expected status %d, got %v", status, err)
	}
	if response.StatusCode != status {
		return fmt.Errorf("expected status %d, got %d %v", status, response.StatusCode, response.Errors)
	}
	if text != "" && !strings.Contains(strings.Join(response.Errors, "\n"), text) {
		return fmt.Errorf("expected an error with %q, got %q", text, response.Errors)
	}
	return nil
}

// first returns the first error, so that a check reads as a list of facts.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
