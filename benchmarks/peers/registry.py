"""All systems, in the order of the table."""

from peers import hf_datasets, litdata_windows, mosaic, torch_dataloader, webdataset_records
from peers.peer import Peer

PEERS: tuple[Peer, ...] = (
    *torch_dataloader.PEERS,
    *webdataset_records.PEERS,
    *litdata_windows.PEERS,
    *hf_datasets.PEERS,
    *mosaic.PEERS,
)
