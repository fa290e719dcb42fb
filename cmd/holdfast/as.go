package main

import "net/http"

// somebody is whom a command acts as, by --as.
type somebody struct {
	user   string
	groups []string
	uid    string
}

// header returns the headers of Kubernetes' impersonation, nil without --as.
func (s somebody) header() (http.Header, error) {
	if s.user == "" {
		if len(s.groups) > 0 || s.uid != "" {
			return nil, failf(exitUsage, "--as-group and --as-uid say more of whom --as names: add --as USER")
		}
		return nil, nil
	}
	header := http.Header{"Impersonate-User": {s.user}}
	if len(s.groups) > 0 {
		header["Impersonate-Group"] = s.groups
	}
	if s.uid != "" {
		header["Impersonate-Uid"] = []string{s.uid}
	}
	return header, nil
}
