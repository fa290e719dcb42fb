package main

// kube has what kube-apiserver 1.36 with three members of etcd did on a machine of two
// cores like this one, with the same loads: the greater figure of a range of rates, the
// lesser of a range of times. By name of our value.
var kube = map[string]float64{
	"create_pods_unary_100_rate":        1200,
	"create_pods_unary_100_p99":         200,
	"create_pods_unary_1000_rate":       1200,
	"create_pods_unary_1000_p99":        2000,
	"create_pods_stream_100_rate":       1200,
	"create_pods_stream_100_p99":        200,
	"create_pods_stream_1000_rate":      1200,
	"create_pods_stream_1000_p99":       2000,
	"create_pods_rest_json_100_rate":    1200,
	"create_pods_rest_json_100_p99":     200,
	"create_pods_rest_proto_100_rate":   1200,
	"create_pods_rest_proto_100_p99":    200,
	"create_pods_apply_rate":            1200,
	"create_pods_frames_rate":           1200,
	"create_configmaps_unary_100_rate":  2000,
	"create_configmaps_stream_100_rate": 2000,
	"get_pods_unary_100_rate":           4000,
	"get_pods_stream_100_rate":          4000,
	"get_pods_rest_json_100_rate":       4000,
	"get_pods_rest_proto_100_rate":      4000,
	"agents_memory":                     350,
	"agents_broadcast_p99":              250,
}
