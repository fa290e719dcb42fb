package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type topFlags struct {
	allNamespaces bool
	labels        string
	containers    bool
	sortBy        string
	noHeaders     bool
	output        string
}

func (a *app) topCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "top pods | nodes",
		Short: "Show what pods and nodes use",
		Long: `Show how much CPU and memory pods or nodes use, as the nodes' agents measure it every
15 seconds. AGE says how old a measure is.`,
		Example: `  holdfast top pods -A --sort-by memory
  holdfast top nodes`,
		Args: groupArgs,
		RunE: showHelp,
	}
	var f topFlags
	common := func(c *cobra.Command) {
		flags := c.Flags()
		flags.StringVarP(&f.labels, "selector", "l", "", "only those with these labels, such as app=web,tier!=cache")
		flags.StringVar(&f.sortBy, "sort-by", "", "cpu or memory: the most first (default: by name)")
		flags.BoolVar(&f.noHeaders, "no-headers", false, "leave out the names of columns")
		flags.StringVarP(&f.output, "output", "o", "table", "table or json")
	}
	pods := &cobra.Command{
		Use:     "pods [NAME]",
		Aliases: []string{"pod", "po"},
		Short:   "Show what pods use",
		Long:    "Show how much CPU, in thousandths of one, and memory the pods of a namespace use.",
		Example: `  holdfast top pods
  holdfast top pods -A --sort-by cpu
  holdfast top pods web-7f2ab --containers`,
		Args:              atMost(1),
		ValidArgsFunction: a.completePods,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runTopPods(cmd.Context(), f, args) },
	}
	common(pods)
	pods.Flags().BoolVarP(&f.allNamespaces, "all-namespaces", "A", false, "pods of all namespaces")
	pods.Flags().BoolVar(&f.containers, "containers", false, "a line for each container")
	nodes := &cobra.Command{
		Use:     "nodes [NAME]",
		Aliases: []string{"node", "no"},
		Short:   "Show what nodes use",
		Long: `Show how much CPU, in thousandths of one, and memory nodes use: all that runs on the
machine, pods or not. The shares are of what pods can have (allocatable).`,
		Example: `  holdfast top nodes
  holdfast top nodes n1 -o json`,
		Args:              atMost(1),
		ValidArgsFunction: a.completeNodes,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.runTopNodes(cmd.Context(), f, args) },
	}
	common(nodes)
	cmd.AddCommand(pods, nodes)
	return cmd
}

func (f topFlags) check(args []string) (name string, err error) {
	if err := checkOutput(f.output, "table", "json"); err != nil {
		return "", err
	}
	if f.sortBy != "" && f.sortBy != "cpu" && f.sortBy != "memory" {
		return "", failf(exitUsage, "--sort-by %s: want cpu or memory", f.sortBy)
	}
	if len(args) == 0 {
		return "", nil
	}
	if f.labels != "" || f.allNamespaces {
		return "", failf(exitUsage, "a name goes with neither --selector nor --all-namespaces")
	}
	return args[0], nil
}

// use is a line of the table.
type use struct {
	cells       []string // before the numbers
	cpu, memory int64
	age         *durationpb.Duration
	after       []string
}

func (a *app) runTopPods(ctx context.Context, f topFlags, args []string) error {
	name, err := f.check(args)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	req := &holdfastv1.ListPodUsageRequest{Namespace: a.inNamespace(), Name: name, LabelSelector: f.labels}
	if f.allNamespaces {
		req.Namespace = ""
	}
	rctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.usage.ListPodUsage(rctx, req)
	if err != nil {
		return a.explain(rctx, r, "top pods", err)
	}
	a.noteUnheard(resp.GetUnheard())
	if f.output == "json" {
		return a.printMessage(resp)
	}
	var uses []use
	for _, p := range resp.GetPods() {
		var cells []string
		if f.allNamespaces {
			cells = append(cells, p.GetNamespace())
		}
		cells = append(cells, p.GetName())
		sum := use{cells: cells, age: p.GetAge(), after: []string{p.GetNode()}}
		for _, c := range p.GetContainers() {
			sum.cpu += c.GetCpuNanocores()
			sum.memory += c.GetMemoryBytes()
			if f.containers {
				uses = append(uses, use{append(slices.Clone(cells), c.GetName()), c.GetCpuNanocores(), c.GetMemoryBytes(), p.GetAge(), sum.after})
			}
		}
		if !f.containers {
			uses = append(uses, sum)
		}
	}
	if len(uses) == 0 {
		a.note("No pod has been measured: none runs, or none has for 15 s.")
		return nil
	}
	columns := []string{"NAME"}
	if f.allNamespaces {
		columns = []string{"NAMESPACE", "NAME"}
	}
	if f.containers {
		columns = append(columns, "CONTAINER")
	}
	a.printUses(f, append(columns, "CPU", "MEMORY", "AGE", "NODE"), uses)
	return nil
}

func (a *app) runTopNodes(ctx context.Context, f topFlags, args []string) error {
	name, err := f.check(args)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	rctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.usage.ListNodeUsage(rctx, &holdfastv1.ListNodeUsageRequest{Name: name, LabelSelector: f.labels})
	if err != nil {
		return a.explain(rctx, r, "top nodes", err)
	}
	a.noteUnheard(resp.GetUnheard())
	if f.output == "json" {
		return a.printMessage(resp)
	}
	nodes, _, err := a.list(ctx, r, &holdfastv1.ListRequest{
		Kind: wireKind(mustResource("nodes")), Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
	}, "nodes")
	if err != nil {
		return err
	}
	has := map[string]corev1.ResourceList{}
	for _, n := range nodes {
		has[n.GetName()] = n.(*corev1.Node).Status.Allocatable
	}
	var uses []use
	for _, n := range resp.GetNodes() {
		list := has[n.GetName()]
		cpu := share(n.GetCpuNanocores()/1e6, list.Cpu().MilliValue())
		memory := share(n.GetMemoryBytes(), list.Memory().Value())
		uses = append(uses, use{[]string{n.GetName()}, n.GetCpuNanocores(), n.GetMemoryBytes(), n.GetAge(), []string{cpu, memory}})
	}
	if len(uses) == 0 {
		a.note("No node has been measured: none is connected, or none has been for 15 s.")
		return nil
	}
	a.printUses(f, []string{"NAME", "CPU", "MEMORY", "AGE", "CPU%", "MEMORY%"}, uses)
	return nil
}

func share(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", part*100/whole)
}

func (a *app) noteUnheard(peers []string) {
	if len(peers) > 0 {
		a.note("Some may be missing or out of date: no answer from peer %s.", strings.Join(peers, ", "))
	}
}

func (a *app) printMessage(m proto.Message) error {
	data, err := protojson.MarshalOptions{Multiline: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", data)
	return err
}

func (a *app) printUses(f topFlags, columns []string, uses []use) {
	switch f.sortBy {
	case "cpu":
		slices.SortStableFunc(uses, func(x, y use) int { return cmp.Compare(y.cpu, x.cpu) })
	case "memory":
		slices.SortStableFunc(uses, func(x, y use) int { return cmp.Compare(y.memory, x.memory) })
	}
	var t object.Table
	for _, name := range columns {
		t.Columns = append(t.Columns, object.Column{Name: name})
	}
	for _, u := range uses {
		row := append(slices.Clone(u.cells), fmt.Sprintf("%dm", (u.cpu+999_999)/1e6), memoryText(u.memory), u.age.AsDuration().Round(time.Second).String())
		t.Rows = append(t.Rows, append(row, u.after...))
	}
	g := grid{w: a.stdout, header: !f.noHeaders}
	g.write(t)
}

// memoryText writes bytes as whole mebibytes, as Kubernetes' top does.
func memoryText(n int64) string {
	return resource.NewQuantity((n+1<<20-1)>>20<<20, resource.BinarySI).String()
}
