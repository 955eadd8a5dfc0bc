#!/usr/bin/env bash
# A SLURM cluster of two nodes on this machine, for tests: real daemons on loopback, no systemd, no cgroups.
#
#   local_cluster.sh install   install the Debian packages that are missing (as root)
#   local_cluster.sh start     start the cluster unless it runs, and wait until both nodes are idle (as root)
#   local_cluster.sh stop      stop the daemons and jobs; the logs are kept
#   local_cluster.sh conf      print the path of slurm.conf: export SLURM_CONF="$(local_cluster.sh conf)"
#
# All files are in $LHTRAIN_SLURM, by default /tmp/lhtrain-slurm. The nodes are node0 and node1, with two CPUs
# each. Jobs in partition `high` preempt jobs in partition `low`, the default.
set -euo pipefail

base=${LHTRAIN_SLURM:-/tmp/lhtrain-slurm}
export SLURM_CONF=$base/etc/slurm.conf
host=$(hostname -s)

install() {
  local missing=false
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || missing=true
  done
  $missing || return 0
  apt-get update -q
  # RUNLEVEL=1: do not start the packages' own daemons, which would occupy the ports.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends \
    slurmctld slurmd slurm-client munge
}

write_configuration() {
  mkdir -p "$base"/{etc,run,log,state,spool/node0,spool/node1}
  chmod 755 "$base" "$base"/*
  # cred_expire: a requeued job waits this long; the default is 120 s. preempt_send_user_signal: a preempted job
  # also gets the signal that it requested for its time limit (--signal), as on many clusters.
  cat >"$SLURM_CONF" <<END
ClusterName=lhtrain
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$base/run/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool/%n
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.%n.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
InactiveLimit=0
KillWait=8
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=60
Waittime=0
NodeName=node0 NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=1000 State=UNKNOWN
NodeName=node1 NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low  Nodes=node0,node1 Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=node0,node1 Default=NO  MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
END
  printf '127.0.0.1 localhost %s node0 node1\n' "$host" >"$base/etc/hosts"
}

alive() { [ -s "$base/run/$1.pid" ] && kill -0 "$(<"$base/run/$1.pid")" 2>/dev/null; }

# Without a running controller, sinfo would retry for a minute.
idle() { alive slurmctld && [ "$(sinfo -h -N -p low -t idle 2>/dev/null | wc -l)" = 2 ]; }

start() {
  if idle; then
    return
  fi
  stop
  write_configuration
  rm -f "$base/etc/munge.key"
  mungekey -c -k "$base/etc/munge.key" -b 1024
  chmod 600 "$base/etc/munge.key"
  munged --force --key-file="$base/etc/munge.key" --socket="$base/run/munge.socket" \
    --pid-file="$base/run/munged.pid" --log-file="$base/log/munged.log" --seed-file="$base/run/munged.seed"
  slurmctld -c -f "$SLURM_CONF"
  for node in node0 node1; do # each node needs its own hostname: torchrun's rendezvous identifies nodes by it
    unshare -mu --propagation private bash -c \
      'hostname "$1"; mount --bind "$2/etc/hosts" /etc/hosts; exec slurmd -N "$1" -f "$2/etc/slurm.conf"' \
      start "$node" "$base"
  done
  for _ in $(seq 300); do
    if idle; then
      return
    fi
    sleep 0.1
  done
  echo "local_cluster.sh: the two nodes are not idle after 30 s; logs: $base/log" >&2
  sinfo -N -l >&2 || true
  exit 1
}

end_process() { # $1: a pid file; the process may be gone already
  [ -s "$1" ] || return 0
  local pid
  pid=$(<"$1")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}

stop() {
  [ -d "$base/run" ] || return 0
  if alive slurmctld; then
    timeout 5 scancel --user="$(id -un)" 2>/dev/null || true
  fi
  # Stop the nodes first: a node that cannot reach the controller takes two minutes to stop.
  for name in slurmd.node0 slurmd.node1 slurmctld munged; do
    end_process "$base/run/$name.pid"
  done
}

case ${1:-} in
install) install ;;
start) start ;;
stop) stop ;;
conf) echo "$SLURM_CONF" ;;
*)
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
  ;;
esac
