"""How the shards of a stage are run: the commit protocol, claims of several processes, and the backends that carry
them out (this process, a local pool, a Ray cluster). What a stage computes is none of its business."""
