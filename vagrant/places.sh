# shellcheck shell=bash disable=SC2034,SC2317  # variables and functions are for those who source this
# Where commands run: sourced by smoke.sh and bench.sh. The lab and the cluster offer the same functions and variables.
#
#   places_lab | places_cluster    set up, and set
#       POD NODE OUTSIDE           places: a pod, a node, a host outside of the cluster
#       NODE_ADDRESS OTHER_NODE_ADDRESS OUTSIDE_ADDRESS POD_ADDRESS
#   run PLACE COMMAND...           there, as root
#   address SERVICE                its ClusterIP
#
# LOAD is the command line of workload/load.py there. Both have the Services web (ClusterIP; 80/TCP, 514/UDP), shop (NodePort 30080), mail
# (NodePort 30025, externalTrafficPolicy Local, its endpoints on the first node), cart (ClientIP) and batch (no endpoints), whose
# endpoints answer with a line of JSON.

here=${here:?the folder of these scripts}

places_lab() {
    lab=${LAB:-smoke}
    POD=pod2-3 NODE=node2 OUTSIDE=client
    NODE_ADDRESS=192.168.50.11 OTHER_NODE_ADDRESS=192.168.50.12 OUTSIDE_ADDRESS=192.168.50.201 POD_ADDRESS=10.244.2.4
    folder=$(mktemp --directory)
    cp "$here/../examples/"*.yaml "$folder"
    proxies=()
    trap leave_lab EXIT
    nftproxy lab up --name "$lab" >/dev/null
    local node
    for node in node1 node2; do
        nftproxy lab exec --name "$lab" "$node" -- nftproxy run --manifests "$folder" --node-name "$node" \
            --cluster-cidr 10.244.0.0/16,fd00:244::/32 >"$folder/$node.log" 2>&1 &
        proxies+=($!)
    done
    for node in node1 node2; do
        until nftproxy lab exec --name "$lab" "$node" -- nftproxy show 2>/dev/null | grep --quiet 30080; do sleep 0.2; done
    done
    LOAD=(python3 "$here/workload/load.py")
    run() {
        local place=$1
        shift
        ip netns exec "$lab.$place" "$@" # what `nftproxy lab exec` does, quicker
    }
    address() {
        case $1 in
            web) echo 10.96.0.10 ;;
            cart) echo 10.96.0.50 ;;
            batch) echo 10.96.0.60 ;;
            *) return 1 ;;
        esac
    }
    # set_ready SERVICE true|false: whether its endpoints are ready.
    set_ready() {
        local file=$folder/clusterip.yaml
        [ "$1" = web ] || return 1
        sed "s/ready: .*/ready: $2/; s/serving: .*/serving: $2/" "$file" >"$folder/.new"
        mv "$folder/.new" "$file"
    }
}

leave_lab() {
    kill "${proxies[@]}" 2>/dev/null || true
    wait "${proxies[@]}" 2>/dev/null || true
    nftproxy lab down --name "$lab" >/dev/null
    rm -rf "$folder"
}

places_cluster() {
    POD=pod NODE=node2 OUTSIDE=host
    network=${NETWORK:-$(sed -n 's/^NETWORK=//p' "$here/variables.env")}
    NODE_ADDRESS=$network.11 OTHER_NODE_ADDRESS=$network.12 OUTSIDE_ADDRESS=$network.1
    ssh_config=$(mktemp)
    trap 'rm -f "$ssh_config"' EXIT
    (cd "$here" && vagrant ssh-config) >"$ssh_config"
    tar --create --directory "$here" workload | over_ssh node1 tar --extract --directory /var/tmp
    kubectl apply --kustomize /var/tmp/workload
    kubectl --namespace smoke rollout status deployment --timeout=900s
    LOAD=(/opt/nftproxy/bin/python /workload/load.py)
    POD_ADDRESS=$(kubectl --namespace smoke get pod --selector app=client --output 'jsonpath={.items[0].status.podIP}')
    run() {
        local place=$1
        shift
        case $place in
            pod) kubectl --namespace smoke exec deployment/client -- "$@" ;;
            host) "$@" ;;
            *) over_ssh "$place" "$@" ;;
        esac
    }
    address() { kubectl --namespace smoke get service "$1" --output 'jsonpath={.spec.clusterIP}'; }
    set_ready() {
        local replicas=0
        [ "$2" = false ] || replicas=3
        kubectl --namespace smoke scale deployment "$1" --replicas "$replicas" >/dev/null
    }
}

# over_ssh MACHINE COMMAND...: as root. What ssh gives to the shell over there is quoted, so that arguments stay what they are.
over_ssh() {
    local machine=$1
    shift
    # shellcheck disable=SC2029  # quoted on purpose here, to be taken apart there
    ssh -q -F "$ssh_config" "$machine" "sudo $(printf '%q ' "$@")"
}

kubectl() { over_ssh node1 kubectl "$@"; }
