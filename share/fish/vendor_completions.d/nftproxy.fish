# Completion of nftproxy for fish: the program itself knows what may follow.
_NFTPROXY_COMPLETE=fish_source nftproxy | source
