/* driver.c - an NVIDIA driver that is older than any build of ours wants: CUDA 12.2's. */

int cuDriverGetVersion(int *version);
int cuInit(unsigned flags);

int
cuDriverGetVersion(int *version)
{
    *version = 12020;
    return 0;
}

int
cuInit(unsigned flags)
{
    return (int)flags;
}
