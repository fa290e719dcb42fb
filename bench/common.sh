# Shared by the benchmarks on a dev cluster: brings one up in $data, takes it down
# at the end. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "$(id -u)" -ne 0 ]; then
	echo "$(basename "$0"): network namespaces and containers need root" >&2
	exit 1
fi
PATH=$PWD/bin:$PATH
data=$(mktemp -d /tmp/holdfast-bench-XXXXXX)
export HOLDFAST_CONFIG=$data/config.yaml
unset HOLDFAST_CONTEXT
dev=
finish() {
	status=$?
	trap - EXIT INT TERM
	if [ -n "$dev" ] && kill -0 "$dev" 2>/dev/null; then
		kill -INT "$dev"
		wait "$dev" || true
	fi
	[ $status -eq 0 ] || tail -n 20 "$data/dev.log" >&2 || true
	holdfast dev clean --data-dir "$data/cluster" >/dev/null 2>&1 || true
	rm -rf "$data"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

# up starts three peers and two nodes and prints the seconds it took.
up() {
	local start=$EPOCHREALTIME
	holdfast dev --peers 3 --nodes 2 --image-dir bin/images --data-dir "$data/cluster" >"$data/dev.log" 2>&1 &
	dev=$!
	until grep -q '^Cluster up' "$data/dev.log"; do
		kill -0 "$dev" 2>/dev/null || { echo "the cluster ended" >&2; exit 1; }
		sleep 0.02
	done
	started=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.2f", b - a}')
}
pid_of() { holdfast dev ps --data-dir "$data/cluster" | awk -v m="$1" '$1 == m {print $4}'; }
leader() { holdfast cluster status | awk '$1 == "Leader" {sub(",", "", $2); print $2}'; }
log_index() { holdfast cluster status | sed -n 's/.*log index \([0-9]*\).*/\1/p'; }
