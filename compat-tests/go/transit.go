package main

import (
	"encoding/base64"
	"fmt"
	"strings"
)

func transit(s *suite) {
	mount := s.mount("transit", nil)
	logical := s.client.Logical()
	write := func(path string, body map[string]any) (map[string]any, error) {
		secret, err := logical.Write(mount+"/"+path, body)
		if err != nil || secret == nil {
			return nil, err
		}
		return secret.Data, nil
	}
	plain := base64.StdEncoding.EncodeToString([]byte("the disk's key"))

	for _, kind := range []string{"aes256-gcm96", "aes128-gcm96", "chacha20-poly1305"} {
		s.check("round trip with "+kind, func() error {
			if _, err := write("keys/"+kind, map[string]any{"type": kind}); err != nil {
				return err
			}
			sealed, err := write("encrypt/"+kind, map[string]any{"plaintext": plain})
			if err != nil {
				return err
			}
			opened, err := write("decrypt/"+kind, map[string]any{"ciphertext": sealed["ciphertext"]})
			return first(err, want("prefix", strings.HasPrefix(sealed["ciphertext"].(string), "vault:v1:"), true),
				want("key_version", sealed["key_version"], 1), want("plaintext", opened["plaintext"], plain))
		})
	}
	s.check("read and list keys", func() error {
		key, err := logical.Read(mount + "/keys/aes256-gcm96")
		if err != nil {
			return err
		}
		list, err := logical.List(mount + "/keys")
		return first(err, want("type", key.Data["type"], "aes256-gcm96"), want("latest", key.Data["latest_version"], 1),
			want("exportable", key.Data["exportable"], false), want("versions", len(key.Data["keys"].(map[string]any)), 1),
			want("keys", list.Data["keys"], "[aes128-gcm96 aes256-gcm96 chacha20-poly1305]"))
	})
	var old string
	s.check("rotate and rewrap", func() error {
		sealed, err := write("encrypt/aes256-gcm96", map[string]any{"plaintext": plain})
		if err != nil {
			return err
		}
		old = sealed["ciphertext"].(string)
		if _, err := write("keys/aes256-gcm96/rotate", nil); err != nil {
			return err
		}
		fresh, err := write("rewrap/aes256-gcm96", map[string]any{"ciphertext": old})
		if err != nil {
			return err
		}
		a, err := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": old})
		if err != nil {
			return err
		}
		b, err := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": fresh["ciphertext"]})
		return first(err, want("prefix", strings.HasPrefix(fresh["ciphertext"].(string), "vault:v2:"), true),
			want("key_version", fresh["key_version"], 2), want("old", a["plaintext"], plain), want("new", b["plaintext"], plain))
	})
	s.check("encrypt with an old version", func() error {
		sealed, err := write("encrypt/aes256-gcm96", map[string]any{"plaintext": plain, "key_version": 1})
		return first(err, want("prefix", strings.HasPrefix(sealed["ciphertext"].(string), "vault:v1:"), true))
	})
	s.check("a version below the minimum", func() error {
		if _, err := write("keys/aes256-gcm96/config", map[string]any{"min_decryption_version": 2}); err != nil {
			return err
		}
		_, err := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": old})
		if err := refused(err, 400, "ciphertext or signature version is disallowed by policy (too old)"); err != nil {
			return err
		}
		_, err = write("keys/aes256-gcm96/config", map[string]any{"min_decryption_version": 1})
		return err
	})
	s.check("batches", func() error {
		items := []any{}
		for i := range 100 {
			items = append(items, map[string]any{"plaintext": base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "disk %d", i)), "reference": fmt.Sprint(i)})
		}
		sealed, err := write("encrypt/aes256-gcm96", map[string]any{"batch_input": items})
		if err != nil {
			return err
		}
		results := sealed["batch_results"].([]any)
		if err := want("results", len(results), 100); err != nil {
			return err
		}
		opened, err := write("decrypt/aes256-gcm96", map[string]any{"batch_input": results})
		if err != nil {
			return err
		}
		rewrapped, err := write("rewrap/aes256-gcm96", map[string]any{"batch_input": results[:3]})
		if err != nil {
			return err
		}
		last := opened["batch_results"].([]any)[99].(map[string]any)
		return first(want("plaintext", last["plaintext"], base64.StdEncoding.EncodeToString([]byte("disk 99"))),
			want("reference", last["reference"], "99"), want("rewrapped", len(rewrapped["batch_results"].([]any)), 3))
	})
	s.check("a batch with one bad item", func() error {
		good, err := write("encrypt/aes256-gcm96", map[string]any{"plaintext": plain})
		if err != nil {
			return err
		}
		items := []any{map[string]any{"ciphertext": good["ciphertext"]}, map[string]any{"ciphertext": "vault:v1:AAAA"}}
		_, err = write("decrypt/aes256-gcm96", map[string]any{"batch_input": items})
		if err := refused(err, 400, ""); err != nil {
			return err
		}
		partial, err := write("decrypt/aes256-gcm96", map[string]any{"batch_input": items, "partial_failure_response_code": 200})
		if err != nil {
			return err
		}
		results := partial["batch_results"].([]any)
		return first(want("good", results[0].(map[string]any)["plaintext"], plain), want("bad", results[1].(map[string]any)["error"] != nil, true))
	})
	s.check("data keys", func() error {
		whole, err := write("datakey/plaintext/aes256-gcm96", map[string]any{"bits": 512})
		if err != nil {
			return err
		}
		opened, err := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": whole["ciphertext"]})
		if err != nil {
			return err
		}
		wrapped, err := write("datakey/wrapped/aes256-gcm96", nil)
		if err != nil {
			return err
		}
		_, shown := wrapped["plaintext"]
		raw, err := base64.StdEncoding.DecodeString(whole["plaintext"].(string))
		return first(err, want("bytes", len(raw), 64), want("same", opened["plaintext"], whole["plaintext"]), want("wrapped shows the key", shown, false))
	})
	s.check("derived and convergent keys", func() error {
		if _, err := write("keys/conv", map[string]any{"derived": true, "convergent_encryption": true}); err != nil {
			return err
		}
		context := base64.StdEncoding.EncodeToString([]byte("rack 7"))
		a, err := write("encrypt/conv", map[string]any{"plaintext": plain, "context": context})
		if err != nil {
			return err
		}
		b, err := write("encrypt/conv", map[string]any{"plaintext": plain, "context": context})
		if err != nil {
			return err
		}
		opened, err := write("decrypt/conv", map[string]any{"ciphertext": a["ciphertext"], "context": context})
		if err != nil {
			return err
		}
		_, missing := write("encrypt/conv", map[string]any{"plaintext": plain})
		return first(want("convergent", a["ciphertext"], b["ciphertext"]), want("plaintext", opened["plaintext"], plain),
			refused(missing, 400, "missing 'context' for key derivation"))
	})
	s.check("associated data", func() error {
		data := base64.StdEncoding.EncodeToString([]byte("disk-1"))
		sealed, err := write("encrypt/aes256-gcm96", map[string]any{"plaintext": plain, "associated_data": data})
		if err != nil {
			return err
		}
		opened, err := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": sealed["ciphertext"], "associated_data": data})
		if err != nil {
			return err
		}
		_, without := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": sealed["ciphertext"]})
		return first(want("plaintext", opened["plaintext"], plain), refused(without, 400, ""))
	})
	s.check("bad input", func() error {
		_, noKey := write("decrypt/nothing", map[string]any{"ciphertext": "vault:v1:AAAA"})
		_, notBase64 := write("encrypt/aes256-gcm96", map[string]any{"plaintext": "***"})
		_, noPrefix := write("decrypt/aes256-gcm96", map[string]any{"ciphertext": "AAAA"})
		_, noInput := write("encrypt/aes256-gcm96", map[string]any{})
		return first(refused(noKey, 400, "encryption key not found"), refused(notBase64, 400, "illegal base64"),
			refused(noPrefix, 400, "invalid ciphertext: no prefix"), refused(noInput, 400, "missing plaintext"))
	})
	s.check("delete a key", func() error {
		_, err := logical.Delete(mount + "/keys/conv")
		if err := refused(err, 400, "deletion is not allowed for this key"); err != nil {
			return err
		}
		if _, err := write("keys/conv/config", map[string]any{"deletion_allowed": true}); err != nil {
			return err
		}
		if _, err := logical.Delete(mount + "/keys/conv"); err != nil {
			return err
		}
		key, err := logical.Read(mount + "/keys/conv")
		return first(err, want("gone", key == nil, true))
	})
}
