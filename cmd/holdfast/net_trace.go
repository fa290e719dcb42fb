package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) netTraceCommand() *cobra.Command {
	var output, protocol string
	cmd := &cobra.Command{
		Use:   "trace pod/NAME service/NAME:PORT|pod/NAME:PORT|ADDRESS:PORT",
		Short: "Say where a pod's connection would go, and what stops it",
		Long: `Say where a connection of a pod would go: to which endpoints of a service, from which
node to which; which policy allows it, and what stops it: a port that the service does
not have, endpoints that are not ready, a node that is lost, a policy. And what would let
it through. That is by the cluster's state; then both nodes say what the rules in their
kernels make of it. Nothing is sent. The command fails if anything stops the connection
on the way to any endpoint.

A name may have a namespace before it: pod/shop/web.`,
		Example: `  holdfast net trace pod/web service/db:5432
  holdfast net trace pod/web service/shop/db:postgres
  holdfast net trace pod/web pod/db-0:5432
  holdfast net trace pod/web 10.9.8.7:53 --protocol UDP`,
		Args: exactArgs(2, "where a connection comes from and where it goes"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := traceRequest(args[0], args[1])
			if err != nil {
				return err
			}
			if req.Protocol = protocol; req.GetNamespace() == "" {
				req.Namespace = a.inNamespace()
			}
			return a.runNetTrace(cmd.Context(), req, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&protocol, "protocol", "TCP", "TCP, UDP or SCTP")
	return cmd
}

// traceRequest reads both ends of a connection. Its namespace is empty if from has none.
func traceRequest(from, to string) (*holdfastv1.TraceRequest, error) {
	req := &holdfastv1.TraceRequest{}
	kind, namespace, name := splitEnd(from)
	if kind != "pod" || name == "" {
		return nil, failf(exitUsage, "%q: want a pod that would connect, such as pod/web", from)
	}
	req.Namespace, req.Pod = namespace, name
	at := strings.LastIndex(to, ":")
	if at <= 0 || at == len(to)-1 {
		return nil, failf(exitUsage, "%q: want where to and a port, such as service/db:5432, pod/db-0:5432 or 10.9.8.7:443", to)
	}
	req.Port = to[at+1:]
	kind, namespace, name = splitEnd(to[:at])
	req.ToNamespace = namespace
	switch kind {
	case "service":
		req.To = &holdfastv1.TraceRequest_Service{Service: name}
	case "pod":
		req.To = &holdfastv1.TraceRequest_ToPod{ToPod: name}
	case "":
		req.To = &holdfastv1.TraceRequest_Address{Address: strings.Trim(name, "[]")}
	default:
		return nil, failf(exitUsage, "%q: want service/NAME, pod/NAME or an address before the port", to)
	}
	return req, nil
}

// splitEnd reads KIND/NAME, KIND/NAMESPACE/NAME, or an address, which has no kind.
func splitEnd(text string) (kind, namespace, name string) {
	parts := strings.Split(text, "/")
	switch len(parts) {
	case 1:
		return "", "", text
	case 2:
		name = parts[1]
	case 3:
		namespace, name = parts[1], parts[2]
	default:
		return text, "", ""
	}
	switch parts[0] {
	case "po", "pods":
		return "pod", namespace, name
	case "svc", "services":
		return "service", namespace, name
	}
	return parts[0], namespace, name
}

func (a *app) runNetTrace(ctx context.Context, req *holdfastv1.TraceRequest, output string) error {
	if err := checkOutput(output, "text", "json"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, netVerifyPatience)
	defer cancel()
	resp, err := r.network.Trace(ctx, req)
	if err != nil {
		return a.explain(ctx, r, "trace the connection", err)
	}
	if output == "json" {
		data, err := protojson.MarshalOptions{Multiline: true}.Marshal(resp)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, string(data))
	} else {
		for _, step := range resp.GetSteps() {
			fmt.Fprintln(a.stdout, stepText(step))
		}
	}
	if !resp.GetReached() {
		return failf(exitError, "the connection is stopped")
	}
	return nil
}

func stepText(step *holdfastv1.TraceStep) string {
	mark := "-"
	if step.GetStops() {
		mark = "X"
	}
	text := strings.Repeat("  ", int(step.GetLevel())) + mark + " " + step.GetText()
	if step.GetRemedy() != "" {
		text += "\n" + strings.Repeat("  ", int(step.GetLevel())+1) + "what would let it through: " + step.GetRemedy()
	}
	return text
}
