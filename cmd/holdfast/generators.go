package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

var noFlags = func(*pflag.FlagSet) {}

func generators() []generator {
	return slices.Concat(workloadGenerators(), policyGenerators(), roleGenerators(), []generator{configMapGenerator(), ingressGenerator()})
}

func workloadGenerators() []generator {
	var images []string
	var image, from, schedule, restart string
	var replicas, port int32
	return []generator{{
		use: "deployment NAME --image IMAGE [-- COMMAND...]", aliases: []string{"deploy"}, short: "Make a deployment",
		example: "  holdfast create deployment web --image nginx:1.29 --replicas 2 --port 80",
		flags: func(flags *pflag.FlagSet) {
			flags.StringSliceVar(&images, "image", nil, "image to run; several make a container each")
			flags.Int32VarP(&replicas, "replicas", "r", 1, "how many pods")
			flags.Int32Var(&port, "port", 0, "port that the container listens on")
		},
		make: func(name string, command []string) (object.Object, error) {
			if len(images) == 0 {
				return nil, errors.New("say what to run, with --image")
			}
			if len(images) > 1 && len(command) > 0 {
				return nil, errors.New("a command goes with one image")
			}
			labels := map[string]string{"app": name}
			d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}}}
			d.Labels, d.Spec.Template.Labels = labels, labels
			for _, image := range images {
				c := corev1.Container{Name: containerName(image), Image: image, Command: command}
				if port > 0 {
					c.Ports = []corev1.ContainerPort{{ContainerPort: port}}
				}
				d.Spec.Template.Spec.Containers = append(d.Spec.Template.Spec.Containers, c)
			}
			return d, nil
		},
	}, {
		use: "job NAME --image IMAGE [-- COMMAND...] | --from cronjob/NAME", short: "Make a job",
		example: "  holdfast create job once --image busybox:1.37 -- echo hello\n  holdfast create job now --from cronjob/backup",
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&image, "image", "", "image to run")
			flags.StringVar(&from, "from", "", "take the template of this CronJob")
		},
		makeWith: func(ctx context.Context, a *app, name string, command []string) (object.Object, error) {
			if (image == "") == (from == "") {
				return nil, errors.New("say what to run, with --image or --from")
			}
			if from == "" {
				return &batchv1.Job{Spec: jobSpec(name, image, "", command)}, nil
			}
			kind, cron, ok := strings.Cut(from, "/")
			res, err := a.resourceFor(ctx, kind)
			if !ok || err != nil || res.Kind != "CronJob" {
				return nil, fmt.Errorf("--from %s: want cronjob/NAME", from)
			}
			r, err := a.dial()
			if err != nil {
				return nil, err
			}
			obj, _, err := a.get(ctx, r, res, a.inNamespace(), cron, &holdfastv1.ReadOptions{})
			if err != nil {
				return nil, err
			}
			cj, ok := obj.(*batchv1.CronJob)
			if !ok {
				return nil, fmt.Errorf("%s is a %T", from, obj)
			}
			job := &batchv1.Job{Spec: cj.Spec.JobTemplate.Spec}
			job.Labels = cj.Spec.JobTemplate.Labels
			job.Annotations = map[string]string{"cronjob.kubernetes.io/instantiate": "manual"}
			job.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "CronJob", Name: cj.Name, UID: cj.UID, Controller: new(true)}}
			return job, nil
		},
	}, {
		use: "cronjob NAME --image IMAGE --schedule SCHEDULE [-- COMMAND...]", aliases: []string{"cj"}, short: "Make a job that runs again and again",
		example: "  holdfast create cronjob backup --image busybox:1.37 --schedule '0 3 * * *' -- date",
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&image, "image", "", "image to run")
			flags.StringVar(&schedule, "schedule", "", "when, as cron has it: minute, hour, day, month, weekday")
			flags.StringVar(&restart, "restart", "OnFailure", "what happens when a container ends: OnFailure or Never")
		},
		make: func(name string, command []string) (object.Object, error) {
			if image == "" || schedule == "" {
				return nil, errors.New("say what to run with --image, and when with --schedule")
			}
			return &batchv1.CronJob{Spec: batchv1.CronJobSpec{
				Schedule:    schedule,
				JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: jobSpec(name, image, corev1.RestartPolicy(restart), command)},
			}}, nil
		},
	}}
}

func jobSpec(name, image string, restart corev1.RestartPolicy, command []string) batchv1.JobSpec {
	if restart == "" {
		restart = corev1.RestartPolicyNever
	}
	return batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		RestartPolicy: restart,
		Containers:    []corev1.Container{{Name: name, Image: image, Command: command}},
	}}}
}

// containerName makes a name of an image: registry.example.com/shop/web:1 is web.
func containerName(image string) string {
	name, _, _ := strings.Cut(image, "@")
	name = name[strings.LastIndex(name, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	return strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, name), "-")
}

func policyGenerators() []generator {
	var hard []string
	var scopes []string
	var selector, least, most, description, preemption string
	var value int32
	var global bool
	return []generator{{
		use: "namespace NAME", aliases: []string{"ns"}, short: "Make a namespace", example: "  holdfast create namespace shop", flags: noFlags,
		make: func(string, []string) (object.Object, error) { return &corev1.Namespace{}, nil },
	}, {
		use: "serviceaccount NAME", aliases: []string{"sa"}, short: "Make a service account", example: "  holdfast create serviceaccount robot", flags: noFlags,
		make: func(string, []string) (object.Object, error) { return &corev1.ServiceAccount{}, nil },
	}, {
		use: "quota NAME --hard RESOURCE=AMOUNT,...", aliases: []string{"resourcequota"}, short: "Make a limit of what a namespace may hold",
		example: "  holdfast create quota small --hard pods=10,cpu=4,memory=8Gi",
		flags: func(flags *pflag.FlagSet) {
			flags.StringSliceVar(&hard, "hard", nil, "the limits, such as pods=10,cpu=4")
			flags.StringSliceVar(&scopes, "scopes", nil, "only these pods count, such as BestEffort")
		},
		make: func(string, []string) (object.Object, error) {
			list, err := resourceList("--hard", hard)
			q := &corev1.ResourceQuota{Spec: corev1.ResourceQuotaSpec{Hard: list}}
			for _, s := range scopes {
				q.Spec.Scopes = append(q.Spec.Scopes, corev1.ResourceQuotaScope(s))
			}
			return q, err
		},
	}, {
		use: "poddisruptionbudget NAME --selector LABELS --min-available N", aliases: []string{"pdb"}, short: "Make a limit of how many pods may be evicted at once",
		example: "  holdfast create pdb web --selector app=web --min-available 50%",
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&selector, "selector", "", "labels of the pods, such as app=web")
			flags.StringVar(&least, "min-available", "", "how many must stay, a number or a percentage")
			flags.StringVar(&most, "max-unavailable", "", "how many may be away, a number or a percentage")
		},
		make: func(string, []string) (object.Object, error) {
			if selector == "" || (least == "") == (most == "") {
				return nil, errors.New("say which pods with --selector, and either --min-available or --max-unavailable")
			}
			labels, err := metav1.ParseToLabelSelector(selector)
			if err != nil {
				return nil, fmt.Errorf("--selector: %w", err)
			}
			pdb := &policyv1.PodDisruptionBudget{Spec: policyv1.PodDisruptionBudgetSpec{Selector: labels}}
			if least != "" {
				n := intstr.Parse(least)
				pdb.Spec.MinAvailable = &n
			} else {
				n := intstr.Parse(most)
				pdb.Spec.MaxUnavailable = &n
			}
			return pdb, nil
		},
	}, {
		use: "priorityclass NAME --value N", aliases: []string{"pc"}, short: "Make a class of pods that go before others",
		example: "  holdfast create priorityclass high --value 1000 --description 'serves customers'",
		flags: func(flags *pflag.FlagSet) {
			flags.Int32Var(&value, "value", 0, "the priority; higher goes first")
			flags.BoolVar(&global, "global-default", false, "the class of pods that name none")
			flags.StringVar(&description, "description", "", "what the class is for")
			flags.StringVar(&preemption, "preemption-policy", "PreemptLowerPriority", "PreemptLowerPriority or Never")
		},
		make: func(string, []string) (object.Object, error) {
			p := corev1.PreemptionPolicy(preemption)
			return &schedulingv1.PriorityClass{Value: value, GlobalDefault: global, Description: description, PreemptionPolicy: &p}, nil
		},
	}}
}

func resourceList(flag string, pairs []string) (corev1.ResourceList, error) {
	out := corev1.ResourceList{}
	for _, pair := range pairs {
		name, amount, ok := strings.Cut(pair, "=")
		q, err := resource.ParseQuantity(amount)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("%s: %q: want RESOURCE=AMOUNT, such as cpu=500m or memory=1Gi", flag, pair)
		}
		out[corev1.ResourceName(name)] = q
	}
	return out, nil
}

func roleGenerators() []generator {
	var verbs, resources, names, urls, users, groups, accounts []string
	var role, clusterRole string
	rules := func(a *app, ctx context.Context) ([]rbacv1.PolicyRule, error) {
		if len(verbs) == 0 || len(resources) == 0 && len(urls) == 0 {
			return nil, errors.New("say what is allowed with --verb, and on what with --resource")
		}
		var out []rbacv1.PolicyRule
		byGroup := map[string]int{}
		for _, word := range resources {
			plain, sub, _ := strings.Cut(word, "/")
			group, plural := "", plain
			if plain != "*" {
				r, err := a.resourceFor(ctx, plain)
				if err != nil {
					return nil, err
				}
				group, plural = r.Group, r.Plural
			} else {
				group = "*"
			}
			if sub != "" {
				plural += "/" + sub
			}
			i, ok := byGroup[group]
			if !ok {
				i = len(out)
				byGroup[group] = i
				out = append(out, rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, ResourceNames: names})
			}
			out[i].Resources = append(out[i].Resources, plural)
		}
		if len(urls) > 0 {
			out = append(out, rbacv1.PolicyRule{Verbs: verbs, NonResourceURLs: urls})
		}
		return out, nil
	}
	ruleFlags := func(flags *pflag.FlagSet) {
		flags.StringSliceVar(&verbs, "verb", nil, "what is allowed: get, list, watch, create, update, patch, delete or *")
		flags.StringSliceVar(&resources, "resource", nil, "on which kinds, such as pods,deployments.apps,pods/log")
		flags.StringSliceVar(&names, "resource-name", nil, "only on objects of these names")
	}
	subjectFlags := func(flags *pflag.FlagSet) {
		flags.StringSliceVar(&users, "user", nil, "who may: this user")
		flags.StringSliceVar(&groups, "group", nil, "who may: this group")
		flags.StringSliceVar(&accounts, "serviceaccount", nil, "who may: this service account, NAMESPACE:NAME")
		flags.StringVar(&clusterRole, "clusterrole", "", "what: this ClusterRole")
	}
	subjects := func() (out []rbacv1.Subject, err error) {
		for _, u := range users {
			out = append(out, rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: u})
		}
		for _, g := range groups {
			out = append(out, rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: g})
		}
		for _, account := range accounts {
			ns, name, ok := strings.Cut(account, ":")
			if !ok || ns == "" || name == "" {
				return nil, fmt.Errorf("--serviceaccount %q: want NAMESPACE:NAME", account)
			}
			out = append(out, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: name})
		}
		return out, nil
	}
	return []generator{{
		use: "role NAME --verb VERBS --resource KINDS", short: "Make a list of what is allowed in a namespace", example: "  holdfast create role reader --verb get,list,watch --resource pods,services", flags: ruleFlags,
		makeWith: func(ctx context.Context, a *app, _ string, _ []string) (object.Object, error) {
			r, err := rules(a, ctx)
			return &rbacv1.Role{Rules: r}, err
		},
	}, {
		use: "clusterrole NAME --verb VERBS --resource KINDS", short: "Make a list of what is allowed everywhere", example: "  holdfast create clusterrole reader --verb get,list,watch --resource pods,nodes",
		flags: func(flags *pflag.FlagSet) {
			ruleFlags(flags)
			flags.StringSliceVar(&urls, "non-resource-url", nil, "on these paths, such as /metrics")
		},
		makeWith: func(ctx context.Context, a *app, _ string, _ []string) (object.Object, error) {
			r, err := rules(a, ctx)
			return &rbacv1.ClusterRole{Rules: r}, err
		},
	}, {
		use: "rolebinding NAME --role ROLE --user USER", short: "Allow somebody in a namespace what a role says", example: "  holdfast create rolebinding read --role reader --user jane",
		flags: func(flags *pflag.FlagSet) {
			subjectFlags(flags)
			flags.StringVar(&role, "role", "", "what: this Role of the namespace")
		},
		make: func(string, []string) (object.Object, error) {
			if (role == "") == (clusterRole == "") {
				return nil, errors.New("say what is allowed, with --role or --clusterrole")
			}
			who, err := subjects()
			ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}
			if clusterRole != "" {
				ref.Kind, ref.Name = "ClusterRole", clusterRole
			}
			return &rbacv1.RoleBinding{Subjects: who, RoleRef: ref}, err
		},
	}, {
		use: "clusterrolebinding NAME --clusterrole ROLE --user USER", short: "Allow somebody everywhere what a cluster role says", example: "  holdfast create clusterrolebinding read --clusterrole reader --group staff", flags: subjectFlags,
		make: func(string, []string) (object.Object, error) {
			if clusterRole == "" {
				return nil, errors.New("say what is allowed, with --clusterrole")
			}
			who, err := subjects()
			return &rbacv1.ClusterRoleBinding{Subjects: who, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole}}, err
		},
	}}
}

// Data

// dataFlags are --from-literal, --from-file and --from-env-file.
type dataFlags struct{ literals, files, envs []string }

func (f *dataFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.literals, "from-literal", nil, "an entry, KEY=VALUE")
	flags.StringSliceVar(&f.files, "from-file", nil, "an entry with a file's contents, FILE or KEY=FILE, or one for each file of a folder")
	flags.StringSliceVar(&f.envs, "from-env-file", nil, "an entry for each line KEY=VALUE of a file")
}

// read returns the entries.
func (f *dataFlags) read() (map[string][]byte, error) {
	out := map[string][]byte{}
	put := func(key string, value []byte) error {
		if _, twice := out[key]; twice {
			return fmt.Errorf("entry %q is given twice", key)
		}
		out[key] = value
		return nil
	}
	for _, pair := range f.literals {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--from-literal %q: want KEY=VALUE", pair)
		}
		if err := put(key, []byte(value)); err != nil {
			return nil, err
		}
	}
	for _, arg := range f.files {
		key, path, named := strings.Cut(arg, "=")
		if !named {
			key, path = filepath.Base(arg), arg
		}
		paths := map[string]string{key: path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if named {
				return nil, fmt.Errorf("--from-file %s: a folder has no KEY: its files' names are the keys", arg)
			}
			entries, err := os.ReadDir(path)
			if err != nil {
				return nil, err
			}
			paths = map[string]string{}
			for _, e := range entries {
				if e.Type().IsRegular() {
					paths[e.Name()] = filepath.Join(path, e.Name())
				}
			}
		}
		for key, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if err := put(key, data); err != nil {
				return nil, err
			}
		}
	}
	for _, path := range f.envs {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		scanner := bufio.NewScanner(strings.NewReader(strings.TrimPrefix(string(data), "\ufeff")))
		for line := 1; scanner.Scan(); line++ {
			text := strings.TrimLeft(scanner.Text(), " \t")
			if text == "" || strings.HasPrefix(text, "#") {
				continue
			}
			key, value, ok := strings.Cut(text, "=")
			if !ok {
				value = os.Getenv(key) // as docker and kubectl have it
			}
			if err := put(key, []byte(value)); err != nil {
				return nil, fmt.Errorf("%s:%d: %w", path, line, err)
			}
		}
	}
	return out, nil
}

func configMapGenerator() generator {
	var data dataFlags
	return generator{
		use: "configmap NAME", aliases: []string{"cm"}, short: "Make a config map", example: "  holdfast create configmap app --from-literal mode=fast --from-file settings.ini",
		flags: data.add,
		make: func(string, []string) (object.Object, error) {
			entries, err := data.read()
			cm := &corev1.ConfigMap{Data: map[string]string{}}
			for key, value := range entries {
				if utf8.Valid(value) {
					cm.Data[key] = string(value)
					continue
				}
				if cm.BinaryData == nil {
					cm.BinaryData = map[string][]byte{}
				}
				cm.BinaryData[key] = value
			}
			return cm, err
		},
	}
}

func secretGenerators() []generator {
	var data dataFlags
	var kind, cert, key, server, user, password, email string
	return []generator{{
		use: "generic NAME", short: "Make a secret of values or files", example: "  holdfast create secret generic db --from-literal password=hunter2",
		flags: func(flags *pflag.FlagSet) {
			data.add(flags)
			flags.StringVar(&kind, "type", "", "the secret's type (default Opaque)")
		},
		make: func(string, []string) (object.Object, error) {
			entries, err := data.read()
			return &corev1.Secret{Type: corev1.SecretType(kind), Data: entries}, err
		},
	}, {
		use: "tls NAME --cert FILE --key FILE", short: "Make a secret of a certificate and its key", example: "  holdfast create secret tls shop --cert shop.crt --key shop.key",
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&cert, "cert", "", "file with the certificate, PEM")
			flags.StringVar(&key, "key", "", "file with the key, PEM")
		},
		make: func(string, []string) (object.Object, error) {
			if cert == "" || key == "" {
				return nil, errors.New("want --cert FILE and --key FILE")
			}
			entries, err := (&dataFlags{files: []string{corev1.TLSCertKey + "=" + cert, corev1.TLSPrivateKeyKey + "=" + key}}).read()
			return &corev1.Secret{Type: corev1.SecretTypeTLS, Data: entries}, err
		},
	}, {
		use: "docker-registry NAME --docker-username USER --docker-password PASSWORD", short: "Make a secret for pulling images", example: "  holdfast create secret docker-registry pull --docker-server registry.example.com --docker-username me --docker-password hunter2",
		flags: func(flags *pflag.FlagSet) {
			flags.StringVar(&server, "docker-server", "https://index.docker.io/v1/", "the registry")
			flags.StringVar(&user, "docker-username", "", "name at the registry")
			flags.StringVar(&password, "docker-password", "", "password at the registry")
			flags.StringVar(&email, "docker-email", "", "address at the registry")
		},
		make: func(string, []string) (object.Object, error) {
			if user == "" || password == "" {
				return nil, errors.New("want --docker-username and --docker-password")
			}
			entry := map[string]string{"username": user, "password": password, "auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
			if email != "" {
				entry["email"] = email
			}
			return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
				corev1.DockerConfigJsonKey: jsonOf(map[string]any{"auths": map[string]any{server: entry}}),
			}}, nil
		},
	}}
}

// Traffic

func serviceGenerators() []generator {
	var tcp []string
	var clusterIP, external string
	var nodePort int32
	service := func(typ corev1.ServiceType) func(string, []string) (object.Object, error) {
		return func(name string, _ []string) (object.Object, error) {
			svc := &corev1.Service{Spec: corev1.ServiceSpec{Type: typ, Selector: map[string]string{"app": name}, ClusterIP: clusterIP, ExternalName: external}}
			svc.Labels = map[string]string{"app": name}
			for _, pair := range tcp {
				from, to, mapped := strings.Cut(pair, ":")
				n, err := strconv.ParseUint(from, 10, 16)
				if err != nil {
					return nil, fmt.Errorf("--tcp %q: want PORT or PORT:TARGET", pair)
				}
				port := corev1.ServicePort{Name: strings.ReplaceAll(pair, ":", "-"), Port: int32(n), TargetPort: intstr.FromInt32(int32(n)), NodePort: nodePort}
				if mapped {
					port.TargetPort = intstr.Parse(to)
				}
				svc.Spec.Ports = append(svc.Spec.Ports, port)
			}
			switch {
			case typ == corev1.ServiceTypeExternalName && external == "":
				return nil, errors.New("say the name that it stands for, with --external-name")
			case typ != corev1.ServiceTypeExternalName && len(tcp) == 0 && clusterIP != corev1.ClusterIPNone:
				return nil, errors.New("say the ports, with --tcp PORT:TARGET")
			}
			return svc, nil
		}
	}
	ports := func(flags *pflag.FlagSet) {
		flags.StringSliceVar(&tcp, "tcp", nil, "a port and the pods' port behind it, PORT:TARGET")
	}
	return []generator{
		{
			use: "clusterip NAME --tcp PORT:TARGET", short: "Make a service with an address in the cluster", example: "  holdfast create service clusterip web --tcp 80:8080",
			flags: func(flags *pflag.FlagSet) {
				ports(flags)
				flags.StringVar(&clusterIP, "clusterip", "", "its address; None for a name only (default: a free one)")
			},
			make: service(corev1.ServiceTypeClusterIP),
		},
		{
			use: "nodeport NAME --tcp PORT:TARGET", short: "Make a service on a port of every node", example: "  holdfast create service nodeport web --tcp 80:8080",
			flags: func(flags *pflag.FlagSet) {
				ports(flags)
				flags.Int32Var(&nodePort, "node-port", 0, "the port of the nodes (default: a free one)")
			},
			make: service(corev1.ServiceTypeNodePort),
		},
		{use: "loadbalancer NAME --tcp PORT:TARGET", short: "Make a service with an address from outside", example: "  holdfast create service loadbalancer web --tcp 80:8080", flags: ports, make: service(corev1.ServiceTypeLoadBalancer)},
		{
			use: "externalname NAME --external-name HOST", short: "Make a service that is another name for a host", example: "  holdfast create service externalname db --external-name db.example.com",
			flags: func(flags *pflag.FlagSet) {
				ports(flags)
				flags.StringVar(&external, "external-name", "", "the host's name")
			},
			make: service(corev1.ServiceTypeExternalName),
		},
	}
}

func ingressGenerator() generator {
	var rules, annotations []string
	var class, backend string
	return generator{
		use: "ingress NAME --rule HOST/PATH=SERVICE:PORT", aliases: []string{"ing"}, short: "Make rules for web requests from outside",
		example: "  holdfast create ingress shop --rule 'shop.example.com/*=web:80,tls=shop-cert'",
		flags: func(flags *pflag.FlagSet) {
			flags.StringArrayVar(&rules, "rule", nil, "HOST/PATH=SERVICE:PORT, and behind a comma tls or tls=SECRET; a * at the end of PATH is any rest")
			flags.StringArrayVar(&annotations, "annotation", nil, "an annotation, KEY=VALUE")
			flags.StringVar(&class, "class", "", "the ingress class")
			flags.StringVar(&backend, "default-backend", "", "where all else goes, SERVICE:PORT")
		},
		make: func(string, []string) (object.Object, error) {
			if len(rules) == 0 && backend == "" {
				return nil, errors.New("say what goes where, with --rule or --default-backend")
			}
			ing := &networkingv1.Ingress{}
			if class != "" {
				ing.Spec.IngressClassName = &class
			}
			for _, pair := range annotations {
				key, value, ok := strings.Cut(pair, "=")
				if !ok {
					return nil, fmt.Errorf("--annotation %q: want KEY=VALUE", pair)
				}
				metav1.SetMetaDataAnnotation(&ing.ObjectMeta, key, value)
			}
			if backend != "" {
				b, err := ingressBackend(backend)
				if err != nil {
					return nil, err
				}
				ing.Spec.DefaultBackend = b
			}
			for _, rule := range rules {
				if err := addIngressRule(ing, rule); err != nil {
					return nil, err
				}
			}
			return ing, nil
		},
	}
}

func addIngressRule(ing *networkingv1.Ingress, rule string) error {
	main, tls, hasTLS := strings.Cut(rule, ",")
	where, to, ok := strings.Cut(main, "=")
	host, path, hasPath := strings.Cut(where, "/")
	if !ok || !hasPath {
		return fmt.Errorf("--rule %q: want HOST/PATH=SERVICE:PORT", rule)
	}
	b, err := ingressBackend(to)
	if err != nil {
		return err
	}
	typ := networkingv1.PathTypeExact
	if rest, any := strings.CutSuffix(path, "*"); any {
		path, typ = rest, networkingv1.PathTypePrefix
	}
	p := networkingv1.HTTPIngressPath{Path: "/" + path, PathType: &typ, Backend: *b}
	i := slices.IndexFunc(ing.Spec.Rules, func(r networkingv1.IngressRule) bool { return r.Host == host })
	if i < 0 {
		i = len(ing.Spec.Rules)
		ing.Spec.Rules = append(ing.Spec.Rules, networkingv1.IngressRule{Host: host, IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{}}})
	}
	ing.Spec.Rules[i].HTTP.Paths = append(ing.Spec.Rules[i].HTTP.Paths, p)
	if !hasTLS {
		return nil
	}
	word, secret, _ := strings.Cut(tls, "=")
	if word != "tls" {
		return fmt.Errorf("--rule %q: behind the comma want tls or tls=SECRET", rule)
	}
	entry := networkingv1.IngressTLS{SecretName: secret}
	if host != "" {
		entry.Hosts = []string{host}
	}
	ing.Spec.TLS = append(ing.Spec.TLS, entry)
	return nil
}

func ingressBackend(s string) (*networkingv1.IngressBackend, error) {
	service, port, ok := strings.Cut(s, ":")
	if !ok || service == "" || port == "" {
		return nil, fmt.Errorf("%q: want SERVICE:PORT", s)
	}
	b := &networkingv1.IngressServiceBackend{Name: service}
	if p := intstr.Parse(port); p.Type == intstr.Int {
		b.Port.Number = p.IntVal
	} else {
		b.Port.Name = port
	}
	return &networkingv1.IngressBackend{Service: b}, nil
}
