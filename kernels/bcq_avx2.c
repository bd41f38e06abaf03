#include "bcq_kernel.h"
#ifdef BCQ_X86
static uint64_t r(const char*m,int64_t n){return bcq_portable.read(m,n);}
static void t(const float *x, int64_t length, int64_t group, int parts, bcq_tables *out){bcq_portable.tables(x,length,group,parts,out);}
static void e(const bcq_block *block, const bcq_tables *tables, int batch, int parts, float *sums){bcq_portable.product(block,tables,batch,parts,sums);}
static void d(const bcq_block *block, int rows, int64_t stride, void *out, int bfloat){bcq_portable.dequantize(block,rows,stride,out,bfloat);}
const bcq_functions bcq_avx2 = {t,e,d,r};
#endif
