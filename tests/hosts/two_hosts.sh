# Two hosts h1 and h2 on this machine, for the shell that sources this: tests/hosts/run, which has mount, network, host name
# and process namespaces of its own by then, so that all of it ends with the first process of the namespace.
#
# Each host has a network, a host name and a /dev/shm of its own; between them is one wire (wire.cpp) at a time, for
# mpirun's connections as for the ranks'. $scratch holds all files, $wire is the program.

start_hosts() {
  local i
  ip link set lo up
  mkdir -p /run/netns
  printf '127.0.0.1 localhost\n10.78.0.1 h1\n10.78.0.2 h2\n' > "$scratch/hosts"
  mount --bind "$scratch/hosts" /etc/hosts
  for i in 1 2; do
    ip netns add "h$i"
    ip -n "h$i" link set lo up
    mkdir "$scratch/tmp.h$i"
    nsenter "--net=/run/netns/h$i" unshare --mount --uts --propagation private bash -c '
      hostname "$1"
      mount -t tmpfs -o mode=1777 tmpfs /dev/shm
      echo $$ > "$2/$1.pid"
      exec sleep infinity' bash "h$i" "$scratch" &
  done
  for i in 1 2; do
    until [[ -s $scratch/h$i.pid ]]; do sleep 0.02; done
  done
  # How mpirun starts its daemon on the other host.
  cat > "$scratch/agent" << END
#!/usr/bin/env bash
host=\$1
shift
TMPDIR=$scratch/tmp.\$host exec nsenter --target "\$(cat $scratch/\$host.pid)" --net --mount --uts bash -c "\$*"
END
  chmod +x "$scratch/agent"
  export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent=$scratch/agent
  export OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0
}

# lay_wire DELAY_US MBIT_PER_S: in place of the one that is there.
lay_wire() {
  local i
  if [[ -n ${wire_pid:-} ]]; then
    kill "$wire_pid"
    wait "$wire_pid" 2> /dev/null
  fi
  coproc WIRE { exec "$wire" h1 h2 "$1" "$2"; }
  wire_pid=$WIRE_PID
  read -r -t 10 i <&"${WIRE[0]}" && [[ $i == up ]] || return 1
  for i in 1 2; do
    ip -n "h$i" addr add "10.78.0.$i/24" dev eth0
    ip -n "h$i" link set eth0 mtu 9000 up
  done
}
cut_wire() { kill -USR1 "$wire_pid"; }
mend_wire() { kill -USR2 "$wire_pid"; }

# on HOST COMMAND...
on() {
  local host=$1
  shift
  TMPDIR=$scratch/tmp.$host nsenter --target "$(cat "$scratch/$host.pid")" --net --mount --uts "--wd=$PWD" "$@"
}
