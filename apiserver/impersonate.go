package apiserver

import (
	"context"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
)

// Who may, by the verb impersonate, acts as somebody else: with that one's rights and no
// others, by headers that are Kubernetes' own, over its dialect and over Connect. The log
// names both.
const (
	impersonateUser  = "Impersonate-User"
	impersonateGroup = "Impersonate-Group"
	impersonateUID   = "Impersonate-Uid"
	impersonateExtra = "Impersonate-Extra-"

	authenticationGroup = "authentication.k8s.io"
	accountPrefix       = "system:serviceaccount:"
)

// impersonatorKey is for the name of who acts as somebody else, as actor writes it.
type impersonatorKey struct{}

// impersonate returns ctx as that of whom the headers name, or as that of a stranger
// who is told why its caller may not. Without such headers it returns ctx.
func (s *Server) impersonate(ctx context.Context, header http.Header) context.Context {
	wanted := false
	for name := range header {
		wanted = wanted || strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(name), "Impersonate-")
	}
	if _, known := identityFrom(ctx); !wanted || !known { // a stranger is refused anyhow
		return ctx
	}
	who, checks, err := impersonated(header)
	if err == nil {
		err = s.mayImpersonate(ctx, checks)
	}
	if err != nil {
		return context.WithValue(context.WithValue(ctx, identityKey{}, nil), refusedKey{}, err)
	}
	before := ctx
	again, _ := ctx.Value(recheckKey{}).(func(context.Context) error)
	// Streams end with the right to impersonate, too.
	ctx = context.WithValue(ctx, recheckKey{}, func(now context.Context) error {
		if again != nil {
			if err := again(now); err != nil {
				return err
			}
		}
		return s.mayImpersonate(before, checks)
	})
	ctx = context.WithValue(ctx, impersonatorKey{}, actor(before))
	// Roles say what he may, whoever he is: a node or a peer acts for itself alone.
	id := pki.Identity{Cluster: s.cfg.ClusterID, Role: pki.RoleUser, Name: who.Name}
	return context.WithValue(withIdentity(ctx, id), callerKey{}, who)
}

// mayImpersonate returns nil if the caller of ctx may do all of checks.
func (s *Server) mayImpersonate(ctx context.Context, checks []Attributes) error {
	for _, check := range checks {
		if err := s.Authorize(ctx, check); err != nil {
			return err
		}
	}
	return nil
}

// impersonated reads whom headers name, and what one must be allowed to act as him.
func impersonated(header http.Header) (who Caller, checks []Attributes, err error) {
	users := header.Values(impersonateUser)
	if len(users) != 1 || users[0] == "" {
		return who, nil, badRequest(impersonateUser, "is missing, empty or there twice: groups, uid and extras belong to one user")
	}
	who = Caller{Name: users[0], UID: header.Get(impersonateUID), Groups: slices.Clone(header.Values(impersonateGroup))}
	as := func(group, resource, sub, namespace, name string) {
		checks = append(checks, Attributes{Verb: "impersonate", Group: group, Resource: resource, Subresource: sub, Namespace: namespace, Name: name})
	}
	if account, ok := strings.CutPrefix(who.Name, accountPrefix); ok {
		namespace, name, ok := strings.Cut(account, ":")
		if !ok || namespace == "" || name == "" || strings.Contains(name, ":") {
			return who, nil, badRequest(impersonateUser, "is %q: a service account's name is %sNAMESPACE:NAME", who.Name, accountPrefix)
		}
		as("", "serviceaccounts", "", namespace, name)
		if len(who.Groups) == 0 {
			who.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace}
		} else {
			for _, group := range who.Groups {
				as("", "groups", "", "", group)
			}
		}
	} else {
		as("", "users", "", "", who.Name)
		for _, group := range who.Groups {
			as("", "groups", "", "", group)
		}
	}
	if who.UID != "" {
		as(authenticationGroup, "uids", "", "", who.UID)
	}
	for name, values := range header {
		name = textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case name == impersonateUser, name == impersonateGroup, name == impersonateUID, !strings.HasPrefix(name, "Impersonate-"):
			continue
		case !strings.HasPrefix(name, impersonateExtra):
			return who, nil, badRequest(name, "is not a header of Kubernetes' impersonation") // to ignore it might give more
		}
		key, err := url.PathUnescape(strings.ToLower(strings.TrimPrefix(name, impersonateExtra)))
		if err != nil || key == "" {
			return who, nil, badRequest(name, "is not the name of an extra")
		}
		if who.Extra == nil {
			who.Extra = make(map[string][]string)
		}
		for _, value := range values {
			who.Extra[key] = append(who.Extra[key], value)
			as(authenticationGroup, "userextras", key, "", value)
		}
	}
	switch everybody := "system:authenticated"; {
	case who.Name == "system:anonymous":
		who.Groups = append(who.Groups, "system:unauthenticated")
	case !slices.Contains(who.Groups, everybody):
		who.Groups = append(who.Groups, everybody)
	}
	return who, checks, nil
}

// acts returns PermissionDenied if the caller of ctx acts as somebody else, who could
// otherwise be given what lasts longer than the right to.
func acts(ctx context.Context, what string) error {
	if by, ok := ctx.Value(impersonatorKey{}).(string); ok {
		return connect.Errorf(connect.CodePermissionDenied, "%s acts as somebody else, and may not %s for him", by, what)
	}
	return nil
}
