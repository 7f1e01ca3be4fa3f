import sys; sys.path.insert(0,'/work/main')
def test_x(shard_folder,tmp_path):
    from tests.running import launch, finish
    from tests.test_launch import WORKER
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1")
    p = launch(shard_folder, tmp_path/'run', iters=8, ckpt_every=3, launcher=launcher, script=WORKER, fault="killed:1:7")
    print("SAID", finish(p)); print("RC", p.returncode)
