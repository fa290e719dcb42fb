// Package runtime is the boundary between the agent and whatever runs
// containers on its node: the interface, the types that cross it, and (in
// conformance) the one test suite that every implementation passes.
//
// The agent decides what should run; a runtime runs it and says what does. It
// keeps its own records, so that an agent which starts anew learns from
// [Runtime.List] what is there and adopts it.
package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var (
	// ErrNotFound is returned for a pod, container or image that the runtime
	// does not have.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned by RunContainer for a container that exists already,
	// running or not.
	ErrExists = errors.New("already exists")
	// ErrNotRunning is returned by Exec, Attach, Usage and Dial when nothing runs.
	ErrNotRunning = errors.New("container is not running")
	// ErrNoStdin is returned by Attach with stdin to a container that has none, or
	// whose stdin has ended for good.
	ErrNoStdin = errors.New("container has no open stdin")
	// ErrMemoryInUse is returned by ResizePod and ResizeContainer for a limit below what
	// is in use: nothing was changed.
	ErrMemoryInUse = errors.New("more memory is in use")
	// ErrConfig is returned by RunContainer for what cannot be made from its
	// description with this image: trying again does not help before one changes.
	ErrConfig = errors.New("container configuration")
	// ErrImageNeverPull is returned by EnsureImage when the image is absent and
	// the policy forbids to fetch it.
	ErrImageNeverPull = errors.New("image is not present and its pull policy is Never")
)

// Runtime runs containers on one node.
//
// Calls for different pods may overlap. Calls that change one pod never do, but
// for StopContainer, which is called for several containers of a pod at once.
// Reading calls (List, Logs, Exec, Attach, Dial, Usage) may overlap with anything. Every method
// returns soon after its context ends, and leaves nothing half done that the
// same call, made again, would not finish.
type Runtime interface {
	// Run brings the runtime up and keeps it so until ctx ends. Containers
	// outlive it. It returns an error when the runtime cannot be had at all.
	Run(ctx context.Context) error
	// Ready is closed once calls can be made.
	Ready() <-chan struct{}
	// Version names the runtime, "containerd://2.4.2".
	Version() string

	// EnsureImage makes the image present as the policy says and returns it. It
	// reports what it does through progress, which may be nil. It may be called
	// for one image from several pods at once. Credentials are for the image's
	// registry; they are tried one after the other.
	EnsureImage(ctx context.Context, ref string, policy corev1.PullPolicy, progress func(string), credentials ...Credential) (Image, error)
	// Images returns the images that are present.
	Images(ctx context.Context) ([]ImageState, error)
	// RemoveImage takes away an image under all its names, and frees its space. Removing
	// an unknown one is not an error. Containers that were made from it go on; new ones
	// need EnsureImage again.
	RemoveImage(ctx context.Context, digest string) error
	// ImageDisk returns how full the file system is that images, and what containers
	// write into their own root, are on.
	ImageDisk(ctx context.Context) (Disk, error)

	// CreatePod prepares what the containers of a pod share. Creating a pod that
	// exists is not an error: containers run from then on get what was passed
	// last.
	CreatePod(ctx context.Context, pod Pod) error
	// RunContainer creates and starts a container of a created pod. It returns
	// ErrExists if there is one of the same ID.
	RunContainer(ctx context.Context, c Container) error
	// StopContainer sends the container's StopSignal, waits
	// up to grace for the container to end, then kills it. It returns once the
	// container has ended. Stopping one that has ended, or that is unknown, is
	// not an error.
	StopContainer(ctx context.Context, id ContainerID, grace time.Duration) error
	// ResizePod bounds a created pod's containers together anew, and those of its class
	// with it. On some nodes no container's own CPU limit can be above its pod's. It
	// returns ErrNotFound for a pod that it does not have.
	ResizePod(ctx context.Context, uid string, r Resources) error
	// ResizeContainer gives a running container other weights and limits of CPU and memory,
	// and does not restart it; PIDs and OOMScoreAdj stay as they are. It returns
	// ErrNotFound or ErrNotRunning for another. When it fails otherwise, some may have
	// been changed.
	ResizeContainer(ctx context.Context, id ContainerID, r Resources) error
	// RemoveContainer forgets a container that has ended, or that was created
	// and never started, and frees what it held, but for its log. Removing an
	// unknown one is not an error; removing a running one is.
	RemoveContainer(ctx context.Context, id ContainerID) error
	// RemovePod kills what still runs in the pod and frees all that it held, but for its
	// logs. Removing an unknown pod is not an error.
	RemovePod(ctx context.Context, uid string) error

	// List returns every pod that the runtime holds, with its containers, as
	// they are. It is the truth; what an agent remembers is not.
	List(ctx context.Context) ([]PodState, error)
	// Changed returns a channel that is closed when List would answer otherwise
	// than when Changed was called. Wake-ups may be late or too many, hence the
	// agent lists periodically too.
	Changed() <-chan struct{}

	// Logs writes a container's log to w, oldest line first. With
	// options.Follow it goes on until the container has ended and all it wrote
	// has been written, or ctx ends. It returns ErrNotFound for a container
	// that it never had or whose logs were removed.
	Logs(ctx context.Context, id ContainerID, options LogOptions, w io.Writer) error
	// KeptLogs returns the pods that were removed and whose logs are still there. Of two
	// with one uid only the last is.
	KeptLogs(ctx context.Context) ([]KeptLogs, error)
	// RemoveLogs takes away the logs of a pod that was removed. Removing what is not there
	// is not an error.
	RemoveLogs(ctx context.Context, podUID string) error
	// Exec runs a command in a running container and returns its exit code. When
	// ctx ends, the command is killed. It returns ErrNotFound or ErrNotRunning
	// when there is nothing to run it in.
	Exec(ctx context.Context, id ContainerID, options ExecOptions) (int, error)
	// Attach writes what a running container writes from now on, passes stdin on to
	// it, and returns its exit code once it has ended and all was written. A writer
	// that is slow slows the container down. When ctx ends, the container goes on.
	// It returns ErrNotFound, ErrNotRunning or ErrNoStdin when it cannot be had.
	Attach(ctx context.Context, id ContainerID, options AttachOptions) (int, error)
	// Dial connects to a TCP port that is listened on in the pod's network, on its
	// loopback addresses or its own. When nothing listens, the error matches
	// syscall.ECONNREFUSED. It returns ErrNotFound for a pod that it does not have.
	Dial(ctx context.Context, podUID string, port uint16) (net.Conn, error)
	// Usage returns what a running container uses. It returns ErrNotFound or
	// ErrNotRunning for another.
	Usage(ctx context.Context, id ContainerID) (Usage, error)
	// DiskUsage measures what a pod's containers take of the disk, ended runs that were
	// not removed included. It walks all their files. It returns ErrNotFound for a pod
	// that it does not have.
	DiskUsage(ctx context.Context, podUID string) ([]ContainerDisk, error)
}

// Cgroups is what a runtime has besides whose containers are processes of this machine, in
// control groups: what it takes to end a pod without asking the runtime. Paths are
// those of control groups, "/holdfast/n1", the same in all trees.
type Cgroups interface {
	// NodeCgroup is the control group of all pods of the node.
	NodeCgroup() string
	// PodCgroup is that of a pod which was created, and of all its containers.
	PodCgroup(uid string) string
	// InstallProgram makes this program be there under another name, by which it knows
	// what to be, and returns its path. A repeated call is harmless.
	InstallProgram(name string) (path string, err error)
}

// Image is an image that is present on the node.
type Image struct {
	Ref    string // as asked for
	Digest string // "sha256:…"
}

// Credential is what a registry may ask for.
type Credential struct {
	Username, Password string
}

// ImageState is an image as the runtime has it.
type ImageState struct {
	Digest string   // "sha256:…"
	Names  []string // sorted
	Bytes  int64    // what it takes on the disk, or more where images share
}

// Disk is how full a file system is.
type Disk struct {
	Bytes, FreeBytes   int64 // for programs that are not root's
	Inodes, FreeInodes int64 // 0 and 0 where it does not count them
}

// Pod is what the containers of a pod share.
type Pod struct {
	UID       string
	Namespace string
	Name      string
	Hostname  string
	// NetNS is the path of the pod's network namespace. Empty: the node's own.
	NetNS string
	// ResolvConf and Hosts are the contents of those files in the containers.
	// Nil: the node's own.
	ResolvConf []byte
	Hosts      []byte
	// SharePID: the containers see each other's processes. A process of the pod's
	// own is the first among them and reaps. It stays as it was at the pod's creation.
	SharePID bool
	// HostPID and HostIPC: the node's own process ids, and the node's own IPC with its
	// /dev/shm, instead of the pod's.
	HostPID, HostIPC bool
	// Sysctls are parameters of the kernel, by name with dots, for the pod's
	// namespaces.
	Sysctls map[string]string
	// QOS is the pod's class, by which pods that compete are told apart; it never
	// changes. Resources bound all of its containers together; its out-of-memory score
	// counts for nobody.
	QOS       corev1.PodQOSClass
	Resources Resources
}

// ContainerID identifies one run of a container.
type ContainerID struct {
	PodUID  string
	Name    string // of the container in the pod
	Attempt int    // 0 for the first run, 1 for the first restart, …
}

// Container is all that is needed to run a container.
type Container struct {
	ID    ContainerID
	Image string // a reference that EnsureImage has returned
	// Command and Args override the image's entrypoint and command, as in
	// Kubernetes.
	Command    []string
	Args       []string
	WorkingDir string
	Env        []string // "NAME=value", on top of the image's
	Mounts     []Mount
	Resources  Resources
	// StopSignal is the name of the signal that asks the container to end, "SIGUSR1".
	// Empty: what the image asks for, or else SIGTERM.
	StopSignal string
	Security   Security
	// SpecHash is kept and returned by List, so that an agent can tell whether
	// a container is the one it would run.
	SpecHash string
	// Target is a running container of the pod of which this one sees the processes;
	// nil: none. It is ErrConfig when that does not run.
	Target *ContainerID
	TTY    bool
	// Stdin is kept open for Attach, until the container ends; with StdinOnce until
	// the first one that has passed stdin on has left. Without it there is nothing to
	// read.
	Stdin     bool
	StdinOnce bool
}

// Mount binds a directory or file of the node into a container.
type Mount struct {
	HostPath      string
	ContainerPath string
	ReadOnly      bool
	// Propagation is "rprivate" (also when empty), "rslave" or "rshared".
	Propagation string
}

// Security says as whom a container runs, and what it may do. The zero value is
// what one gets that asks for nothing: the image's user, the usual capabilities, the
// runtime's filter of system calls.
type Security struct {
	// User and Group are numbers. Nil: the image's; a user without a group in the
	// image's /etc/passwd has group 0.
	User, Group *int64
	// NonRoot: RunContainer returns ErrConfig if the user would be root.
	NonRoot bool
	// Groups are supplementary groups. The user has those of the image's /etc/group too,
	// but with StrictGroups.
	Groups       []int64
	StrictGroups bool
	// AddCapabilities and DropCapabilities change the usual ones; names without
	// "CAP_", or "ALL". A capability in both is dropped.
	AddCapabilities, DropCapabilities []string
	// Privileged: all capabilities and devices, and no filter; the rest of the
	// container's isolation stays.
	Privileged bool
	// ReadOnlyRoot: only mounts can be written to.
	ReadOnlyRoot bool
	// NoNewPrivileges: set-user-id programs and the like give nothing.
	NoNewPrivileges bool
	// Seccomp is the filter of system calls: "" is the runtime's, SeccompUnconfined
	// none, else the path of a file with a profile in the form of the OCI. A file that
	// cannot be read is ErrConfig.
	Seccomp string
}

// SeccompUnconfined is no filter of system calls.
const SeccompUnconfined = "unconfined"

// Resources are limits. 0: none.
type Resources struct {
	CPUMillis   int64 // limit
	CPUShares   int64 // weight, from the request: cgroup v1's cpu.shares
	MemoryBytes int64
	PIDs        int64
	// OOMScoreAdj is -1000 (never) to 1000 (first): how likely a process is chosen when
	// the node is out of memory.
	OOMScoreAdj int
}

// State is where a container stands.
type State string

// A container is created, then runs, then has exited. Unknown is for one that
// the runtime cannot tell about at the moment.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
	StateUnknown State = "unknown"
)

// PodState is a pod as the runtime has it.
type PodState struct {
	UID        string
	Namespace  string
	Name       string
	NetNS      string
	Resources  *Resources       // that bound it now; nil: not known
	Containers []ContainerState // oldest attempt first
}

// ContainerState is a container as the runtime has it.
type ContainerState struct {
	ID         ContainerID
	Handle     string // the runtime's own id, "containerd://…"
	Image      string
	ImageID    string
	SpecHash   string
	Resources  *Resources // that it has now; nil: not known
	State      State
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int
	OOMKilled  bool
	Message    string // why it could not start or was lost
}

// LogOptions selects part of a log.
type LogOptions struct {
	Follow     bool
	TailLines  int64 // negative: all
	Timestamps bool  // each line begins with its time, RFC 3339 with nanoseconds
	Since      time.Time
}

// KeptLogs are the logs of a pod that was removed.
type KeptLogs struct {
	UID, Namespace, Name string
	RemovedAt            time.Time
	Bytes                int64
	Runs                 []ContainerID // by name and attempt
}

// ExecOptions says what to run in a container, and where its streams go.
type ExecOptions struct {
	Command []string
	TTY     bool
	Stdin   io.Reader // nil: none
	Stdout  io.Writer
	Stderr  io.Writer        // unused with TTY
	Resize  <-chan [2]uint32 // width, height; may be nil; the first value is the first size
	Started func()           // called once the command has started; may be nil
}

// AttachOptions says where a container's streams go, and where its stdin comes from.
type AttachOptions struct {
	// Stdin is passed on. Its end is the end of the container's stdin only if that
	// is for one (StdinOnce) and no terminal. Nil: none.
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer        // unused with a terminal
	Resize <-chan [2]uint32 // width, height; of no effect without a terminal; may be nil
	// Started is called once nothing will be missed any more; may be nil. tty tells
	// whether the container has a terminal.
	Started func(tty bool)
}

// Usage is what a container uses.
type Usage struct {
	CPU         time.Duration // since the container's start
	MemoryBytes int64         // without what the kernel can take back at once
	PIDs        int64         // processes and threads
}

// ContainerDisk is what the runs of a container take of the disk.
type ContainerDisk struct {
	Name      string
	RootBytes int64 // written into its own root
	Inodes    int64
	LogBytes  int64
}
